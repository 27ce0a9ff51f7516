"""FAISS's part of an approximate index: which vectors may be a query's closest."""

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from indexes.kinds import (
    LINKS,
    TRAINING_ROUNDS,
    TRAINING_VECTORS,
    Kind,
    num_lists,
    sub_vectors,
)

_faiss: Any = faiss  # its type stubs lack some classes and misstate others

_CONSTRUCTION = 100
"""Neighbours that HNSW looks at for each vector it adds."""
_LEAST_TRAINING = 1024


@dataclass(frozen=True)
class Width:
    """How widely an approximate search looks before it scores exactly."""

    probes: int
    """Lists that are read for each vector of a query; of no meaning to HNSW."""
    shortlist: int
    """Vectors taken from there, for ten items."""

    def to_json(self) -> dict[str, int]:
        return {"probes": self.probes, "shortlist": self.shortlist}


class Proposer:
    """Numbered vectors in HNSW or IVF.

    Args:
        kind: which of them.
        index: FAISS's; vectors are numbered as they are added.
    """

    def __init__(self, kind: Kind, index: Any) -> None:
        self.kind = kind
        self.index = index

    @staticmethod
    def trained(kind: Kind, sample: np.ndarray, num_vectors: int, seed: int) -> "Proposer":
        """An empty one.

        Args:
            kind: hnsw, ivf or ivfpq.
            sample: float32[S, E] of the vectors that it will hold; `training_vectors` says how many
                do.
            num_vectors: that it will hold.
            seed: of k-means.
        """
        if len(sample) < _LEAST_TRAINING:  # FAISS wants more points than codes
            sample = np.resize(sample, (_LEAST_TRAINING, sample.shape[1]))
        embed_dim = sample.shape[1]
        index: Any
        ip, byte = faiss.METRIC_INNER_PRODUCT, faiss.ScalarQuantizer.QT_8bit
        if kind == "hnsw":
            index = _faiss.IndexHNSWSQ(embed_dim, byte, LINKS, ip)
            index.hnsw.efConstruction = _CONSTRUCTION
        else:
            centres, lists = _faiss.IndexFlatIP(embed_dim), num_lists(num_vectors)
            if kind == "ivf":
                index = ivf = _faiss.IndexIVFScalarQuantizer(centres, embed_dim, lists, byte, ip)
            else:
                parts = sub_vectors(embed_dim)
                ivf = _faiss.IndexIVFPQFastScan(centres, embed_dim, lists, parts, 4, ip)
                ivf.by_residual = True
                rotation = _faiss.OPQMatrix(embed_dim, parts)
                codes = _faiss.ProductQuantizer(embed_dim, parts, 4)
                codes.cp.seed = ivf.pq.cp.seed = seed
                rotation.pq = codes
                rotation.niter = TRAINING_ROUNDS
                index = _faiss.IndexPreTransform(rotation, ivf)
            _set_up(ivf, seed)
        index.train(np.ascontiguousarray(sample))
        return Proposer(kind, index)

    def __len__(self) -> int:
        """V, the number of vectors."""
        return int(self.index.ntotal)

    @property
    def lists(self) -> int:
        """Lists in all; 1 for HNSW."""
        return 1 if self.kind == "hnsw" else int(faiss.extract_index_ivf(self.index).nlist)

    def add(self, vectors: np.ndarray) -> None:
        """Add vectors, float32[n, E]."""
        if self.kind == "hnsw":  # draws levels; what was drawn before is not in its file
            self.index.hnsw.rng = _faiss.RandomGenerator(len(self))
        self.index.add(np.ascontiguousarray(vectors, np.float32))

    def search(self, vectors: np.ndarray, width: Width) -> tuple[np.ndarray, np.ndarray]:
        """The closest vectors to some, by approximate scores.

        Args:
            vectors: float32[n, E]
            width: see there.

        Returns:
            Scores float32[n, c] and numbers int64[n, c], best first; -1 where there are no more.
        """
        count = min(width.shortlist, len(self))
        if self.kind == "hnsw":
            parameters = _faiss.SearchParametersHNSW(efSearch=count)
        else:
            parameters = _faiss.SearchParametersIVF(nprobe=min(width.probes, self.lists))
        return self.index.search(vectors, count, params=parameters)


def training_vectors(kind: Kind, num_vectors: int) -> int:
    """How many of so many vectors a proposer is trained on."""
    lists = TRAINING_VECTORS if kind == "hnsw" else num_lists(num_vectors)
    return min(num_vectors, TRAINING_VECTORS * lists)


def _set_up(ivf: Any, seed: int) -> None:
    """How k-means runs, and where."""
    ivf.cp.seed = seed
    ivf.cp.niter = TRAINING_ROUNDS
    ivf.cp.spherical = True
    ivf.cp.min_points_per_centroid = 1
    ivf.cp.max_points_per_centroid = TRAINING_VECTORS
    if faiss.get_num_gpus():
        ivf.clustering_index = _faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(ivf.d))
