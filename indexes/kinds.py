"""The kinds of index, what a vector takes in each, and which one suits how many.

    exact   every vector is compared with every query
    hnsw    a graph of neighbours over one byte a value
    ivf     lists around centres, one byte a value, read from disk as they are searched
    ivfpq   the same lists with one bit a value (OPQ, four bits for four values), in memory

All but `exact` only propose candidates, which are then scored exactly (`indexes.approximate`).
"""

from dataclasses import dataclass
from typing import Literal

from pipeline.errors import ConfigError

Kind = Literal["exact", "hnsw", "ivf", "ivfpq"]

LINKS = 32
"""Of a vector in HNSW; twice as many on the lowest level."""
TRAINING_VECTORS, TRAINING_ROUNDS = 64, 10
"""For each list, and of k-means."""
_FEW, _MANY = 20_000, 500_000
_ID_BYTES = 8
_MOST_LISTS = 1 << 16
GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """How vectors are indexed."""

    kind: Literal["auto", "exact", "hnsw", "ivf", "ivfpq"] = "auto"
    """How vectors are searched. `auto`: exact below 20,000 vectors, hnsw below 500,000, ivfpq
    above; ivf, which stays on disk, where `memory_gib` holds neither. A picture is many vectors."""

    memory_gib: float | None = None
    """Memory that `auto` may fill with each of pictures and captions, in GiB, for each index shard.
    Vectors for exact scores, which stay on disk, are not counted. No bound by default."""

    target_recall: float = 0.99
    """Share of the true ten best that an approximate search has to find; how widely it looks is
    tuned to that on queries that are not indexed."""

    vectors_per_picture: int | None = None
    """Vectors a picture has in an approximate index: its query outputs are merged into so many.
    Found pictures are scored by all they have. By default as many as query outputs."""

    shard_pictures: int = 1_000_000
    """Pictures in an index shard at most, but for the last rows of a dataset's shard; several are
    built by Ray, searched side by side and merged."""

    seed: int = 0
    """Of the vectors that are trained on and the queries that are tuned on."""

    def __post_init__(self) -> None:
        if self.memory_gib is not None and self.memory_gib <= 0:
            raise ConfigError(f"memory_gib: {self.memory_gib} is not positive")
        if not 0 < self.target_recall <= 1:
            raise ConfigError(f"target_recall: {self.target_recall} is not above 0 and up to 1")
        if self.vectors_per_picture is not None and self.vectors_per_picture < 1:
            raise ConfigError(f"vectors_per_picture: {self.vectors_per_picture} is not positive")
        if self.shard_pictures < 1:
            raise ConfigError(f"shard_pictures: {self.shard_pictures} is not positive")


def chosen(config: IndexConfig, num_vectors: int, embed_dim: int) -> Kind:
    """The kind for so many vectors: as asked for, or as `auto` finds."""
    if config.kind != "auto":
        return config.kind
    if num_vectors < _FEW:
        return "exact"
    kinds: tuple[Kind, ...] = ("hnsw", "ivfpq") if num_vectors < _MANY else ("ivfpq",)
    room = float("inf") if config.memory_gib is None else config.memory_gib * GIB
    for kind in kinds:
        if memory_bytes(kind, num_vectors, embed_dim) <= room:
            return kind
    return "ivf"


def memory_bytes(kind: Kind, num_vectors: int, embed_dim: int) -> float:
    """What a search keeps in memory, without the vectors for exact scores."""
    if kind == "hnsw":  # links on the lowest level, and on average 1/31 of a further level
        return num_vectors * (embed_dim + 4 * LINKS * (2 + 1 / (LINKS - 1)) + _ID_BYTES)
    centres = num_lists(num_vectors) * embed_dim * 4
    if kind == "ivf":
        return centres
    if kind == "ivfpq":
        return centres + num_vectors * (sub_vectors(embed_dim) / 2 + _ID_BYTES)
    return 0.0


def disk_bytes(kind: Kind, num_vectors: int, embed_dim: int) -> float:
    """What is stored beside the vectors for exact scores."""
    if kind == "ivf":
        lists = memory_bytes("ivf", num_vectors, embed_dim)
        return lists + num_vectors * (embed_dim + _ID_BYTES)
    return memory_bytes(kind, num_vectors, embed_dim)


def build_flops(kind: Kind, num_vectors: int, embed_dim: int) -> float:
    """Operations of training lists and finding each vector's; 0 for kinds without lists."""
    if kind not in ("ivf", "ivfpq"):
        return 0.0
    lists = num_lists(num_vectors)
    trained = TRAINING_ROUNDS * min(num_vectors, TRAINING_VECTORS * lists)
    return 2.0 * embed_dim * lists * (num_vectors + trained)


def num_lists(num_vectors: int) -> int:
    """A power of two near twice the root, so that finding lists costs no more than reading them."""
    lists = 1 << max(0, round(2 * num_vectors**0.5) - 1).bit_length()
    return max(1, min(lists, _MOST_LISTS, num_vectors))


def sub_vectors(embed_dim: int) -> int:
    """Parts of a vector that are coded by four bits each: of four values where that can be."""
    return next(embed_dim // values for values in (4, 2, 1) if embed_dim % values == 0)
