"""`viaduct evaluate`: recall and ITM accuracy on held-out pairs, beside chance and a control."""

import contextlib
import json
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from indexes.recall import Ranks, Recall, chance, recall
from indexes.sources import checkpoint_of
from jobs.cluster import ClusterConfig, cluster_device, session
from jobs.compute import ComputeConfig
from jobs.device import torch_device
from jobs.evaluate.control import NO_CONTROL, ControlConfig, control_recall
from jobs.evaluate.held_out import HeldOut
from jobs.evaluate.leaks import LeaksConfig, leaks_of
from jobs.evaluate.matching import match_accuracy
from jobs.evaluate.ranking import MatchWork, match_logits, rank_held_out
from jobs.evaluate.table import table
from jobs.evaluate.workers import Workers
from jobs.results import publish_result
from jobs.shards import WorkersConfig
from model.checkpoint import Checkpoint
from model.checkpoint_models import check_features, load_stage1
from model.qformer import QFormerConfig
from pipeline.captions import open_captions
from pipeline.dataset import Dataset, check_side_by_side
from pipeline.errors import ConfigError
from pipeline.loader import Pairs
from pipeline.shard_cache import CacheConfig
from pipeline.storage import Folder
from pipeline.views import open_evaluation_view

_LITTLE = 5e12
"""Operations that this process does by itself: under a minute of two cores, where workers take
seconds to start."""
_CAPTION_TOKENS = 14
"""Of a caption on average."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure retrieval on a split that was not trained on.

    Recall at 1, 5 and 10 and median rank in both directions, by ITC alone and with ITM putting the
    best of each query in order: any of a picture's captions is right, ties count against us,
    intervals are 95% by bootstrap over pictures. Beside it chance, a ridge regression on the same
    features, ITM's accuracy on pairs and two random non-pairs each, and which of the pictures were
    trained on. `viaduct evaluate captions` measures captions that were written, `viaduct evaluate
    annotations` goes from an annotation file to all this at once.
    """

    embeddings: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="EMBEDDINGS")]
    """Folder with `image_embeddings` and `text_embeddings`."""

    checkpoint: str
    """Training folder or checkpoint of stage 1 that made the embeddings."""

    features: str
    """Dataset of kind `features`."""

    captions: str
    """Dataset beside it that has captions and split: `pairs` or `captions`."""

    split: Literal["train", "validation", "test"] = "test"
    """Split to measure on."""

    rerank: int = 128
    """Candidates of each query that ITM puts in order, by match logit plus cosine; all there are
    where there are fewer. 0 measures ITC alone, which takes seconds where this takes hours: at full
    size `viaduct plan` tells."""

    out: str | None = None
    """File to write the result to, as JSON."""

    json: bool = False
    """Print one JSON object instead of a table."""

    control: ControlConfig = field(default_factory=ControlConfig)
    leaks: LeaksConfig = field(default_factory=LeaksConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    pool: WorkersConfig = field(default_factory=WorkersConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        if self.rerank < 0:
            raise ConfigError(f"rerank: {self.rerank} is negative")

    def run(self) -> None:
        """Measure, print, and write where asked to; raises as `measure`."""
        tell(self.measure(), self.out, as_json=self.json)

    def measure(self) -> "Measured":
        """Measure.

        Raises:
            ConfigError: the split is empty, or datasets and checkpoint do not belong together.
            DatasetError: a shard is damaged.
        """
        checkpoint = Checkpoint.open(self.checkpoint, 1)
        features = open_evaluation_view(self.features, self.cache)
        captions = open_captions(self.captions)
        images, texts = self._embeddings(checkpoint)
        check_features(checkpoint, features)
        check_side_by_side(captions, features, images, texts)
        held = HeldOut.open(images, texts, captions, self.split)
        ranked = self._ranked(held, features, checkpoint)
        recalls = self._recalls(ranked.ranks, held, features)
        stage1 = load_stage1(checkpoint, torch_device(self.compute.device))
        result = {
            "split": self.split,
            "num_pictures": held.num_pictures,
            "num_captions": held.num_captions,
            "checkpoint": checkpoint.digest,
            "captions": captions.digest,
            "features": features.digest,
            "rerank": ranked.rerank,
            "control": self.control.control if "ridge" in recalls else NO_CONTROL,
            "recall": {name: its.to_json() for name, its in recalls.items()},
            "itm": match_accuracy(stage1, Pairs(features, captions, self.split), self.split),
            "leaks": ranked.leaks,
        }
        return Measured(result, recalls)

    def _ranked(self, held: HeldOut, features: Dataset, checkpoint: Checkpoint) -> "_Ranked":
        """What workers find, or this process where that is little."""
        little = _operations(held, checkpoint.qformer, self.rerank) <= _LITTLE
        alone = little and not self.leaks.training  # whose pictures may have to be hashed
        with contextlib.nullcontext() if alone else session(self.cluster):
            ranking, matching, device = self._workers(little)
            rankings = rank_held_out(held, self.rerank, ranking)
            ranks = {"q_former": rankings.ranks}
            told: dict[str, Any] | None = None
            if self.rerank:
                work = MatchWork(held, features, checkpoint, self.compute.batch_size, device)
                candidates = rankings.candidates
                logits = match_logits(work, candidates, matching)
                ranks["reranked"] = rankings.reranked(candidates, logits)
                told = {"k": self.rerank, "num_pairs": len(candidates)}
            hashing = ranking if alone else Workers(self.pool)
            leaks = leaks_of(self.leaks, held, checkpoint, ranks, hashing)
        return _Ranked(ranks, told, leaks)

    def _recalls(
        self, ranks: dict[str, Ranks], held: HeldOut, features: Dataset
    ) -> dict[str, Recall]:
        """By name, with the control and chance."""
        recalls = {name: recall(its) for name, its in ranks.items()}
        if self.control.control != NO_CONTROL:
            found = control_recall(self.control, features, held.captions, self.split)
            if found is not None:
                recalls["ridge"], num_pictures = found
                if num_pictures != held.num_pictures:
                    raise ConfigError(
                        f"{features.folder}: other pictures were taken down than embedded"
                    )
        return recalls | {"chance": chance(held.owners, held.num_pictures)}

    def _workers(self, little: bool) -> tuple[Workers, Workers, str]:
        """Who ranks, who matches and where: Ray's workers, or this process if it is little."""
        if little:
            return Workers(None), Workers(None), torch_device(self.compute.device)
        device = cluster_device(self.compute.device)
        pool = self.pool.on(device, self.compute.threads)
        return Workers(self.pool), Workers(pool, self.compute.threads), device

    def _embeddings(self, checkpoint: Checkpoint) -> tuple[Dataset, Dataset]:
        found = []
        for kind in ("image_embeddings", "text_embeddings"):
            dataset = Dataset.open(Folder.at(self.embeddings) / kind, kind, self.cache)
            made_by = checkpoint_of(dataset)["digest"]
            if made_by != checkpoint.digest:
                raise ConfigError(
                    f"{dataset.folder}: was made by checkpoint {made_by[:16]}, not by "
                    f"{checkpoint.folder} ({checkpoint.digest[:16]})"
                )
            found.append(dataset)
        return found[0], found[1]


@dataclass(frozen=True)
class _Ranked:
    """What came of ranking, as evaluation.json has it."""

    ranks: dict[str, Ranks]
    """By ITC alone, and re-ranked where asked for."""
    rerank: dict[str, Any] | None
    leaks: dict[str, Any] | None


@dataclass(frozen=True)
class Measured:
    """What an evaluation found."""

    result: dict[str, Any]
    """What evaluation.json holds."""
    recalls: dict[str, Recall]
    """Its recalls, by name."""


def tell(measured: Measured, out: str | None, *, as_json: bool) -> None:
    """Print what was found, and write it where asked to.

    Args:
        measured: see there.
        out: file to write to, as JSON.
        as_json: print the same JSON instead of a table.

    Raises:
        ConfigError: the file cannot be written.
    """
    if out is not None:
        publish_result(out, measured.result)
    lines = table(measured.result, measured.recalls)
    print(json.dumps(measured.result) if as_json else "\n".join(lines))


def _operations(held: HeldOut, size: QFormerConfig, k: int) -> float:
    """Of an evaluation, roughly: products of all vectors in both directions, and ITM's linear maps.

    Args:
        held: the split.
        size: of the Q-Former.
        k: candidates of each query that ITM sees.
    """
    num_pictures, num_captions = held.num_pictures, held.num_captions
    products = 4.0 * num_pictures * num_captions * size.num_queries * size.embed_dim
    pairs = num_pictures * min(k, num_captions) + num_captions * min(k, num_pictures)
    rows = size.num_queries + _CAPTION_TOKENS
    return products + 24.0 * pairs * rows * size.num_layers * size.width**2
