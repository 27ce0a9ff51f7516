"""Held-out pictures that were trained on, looked for by uid and by perceptual hash."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa

from indexes.recall import Ranks, recall
from jobs.evaluate.held_out import HeldOut
from jobs.evaluate.workers import Workers
from jobs.shards import Task
from model.checkpoint import Checkpoint
from pipeline.dataset import Dataset, check_side_by_side
from pipeline.errors import ConfigError
from pipeline.hashes import hash_shard
from pipeline.leaks import find_leaks, hashes_beside
from pipeline.near_duplicates import NearDuplicateConfig
from pipeline.schemas import HASHES

logger = logging.getLogger(__name__)

_UIDS_TOLD = 1000
_UNASKED = 1_000_000
"""Pairs at most whose hashes are read without being asked for: some 0.4 GB."""


@dataclass(frozen=True, kw_only=True)
class LeaksConfig:
    """Where to look for held-out pictures that were trained on."""

    training: tuple[str, ...] = ()
    """Datasets `pairs` that the checkpoint was trained on: pictures of the split that equal one of
    their training split, or are alike, are counted as leaks. By default --pairs, if the checkpoint
    was trained on it, it has a million pictures at most, and curate's hashes are beside it."""

    pairs: str | None = None
    """Dataset `pairs` with the pictures that are evaluated; by default --captions, where that is
    of kind `pairs`."""


def leaks_of(
    config: LeaksConfig,
    held: HeldOut,
    checkpoint: Checkpoint,
    ranks: dict[str, Ranks],
    workers: Workers,
) -> dict[str, Any] | None:
    """What `evaluation.json` says of leaks; None where they were not looked for.

    Args:
        config: see there.
        held: the split.
        checkpoint: that is evaluated.
        ranks: by name, of which recall without the leaks is told if there are any.
        workers: who hashes pictures; errors are those of `Workers.all` too.

    Raises:
        ConfigError: the pairs of the split are needed, and not named, or are others.
    """
    own = _own_pairs(config, held)
    if not config.training and not _tells_by_itself(own, checkpoint):
        return None
    if own is None:
        raise ConfigError("pairs: name the dataset with the pictures that are evaluated")
    training = [_Pictures(Dataset.open(its, "pairs")) for its in config.training] or [own]
    _warn_of_others([its.pairs for its in training], checkpoint)
    evaluated = _hashes(own, held.rows, workers)
    trained = [_hashes(its, _rows_to_train_on(its.pairs), workers) for its in training]
    found = find_leaks(evaluated, pa.concat_tables(trained), NearDuplicateConfig())
    leaked = np.flatnonzero(found.any)
    uids = evaluated.column("uid").take(pa.array(leaked[:_UIDS_TOLD])).to_pylist()
    told = {
        "training": [its.pairs.digest for its in training],
        "num_pictures": len(leaked),
        **{kind: int(getattr(found, kind).sum()) for kind in ("same_uid", "same_pixels", "alike")},
        "uids": [uid.hex() for uid in uids],
    }
    if 0 < len(leaked) < held.num_pictures:
        without = {name: _without(its, leaked) for name, its in ranks.items()}
        told["recall_without"] = {
            name: recall(its).to_json() for name, its in without.items() if len(its.captions)
        }
    return told


@dataclass(frozen=True)
class _Pictures:
    """A dataset `pairs` whose pictures are compared."""

    pairs: Dataset

    @cached_property
    def hashes(self) -> pa.Table | None:
        """Those that curate left beside it; read once."""
        return hashes_beside(self.pairs)


def _own_pairs(config: LeaksConfig, held: HeldOut) -> _Pictures | None:
    """Those with the pictures of the split; raises ConfigError where they are others."""
    if config.pairs is None:
        return _Pictures(held.captions) if held.captions.kind == "pairs" else None
    pairs = Dataset.open(config.pairs, "pairs")
    check_side_by_side(held.captions, pairs)
    return _Pictures(pairs)


def _trained_on(checkpoint: Checkpoint) -> set[str]:
    """Digests of the pairs that a checkpoint names."""
    return {parent.digest for parent in checkpoint.lineage.parents if parent.kind == "pairs"}


def _tells_by_itself(own: _Pictures | None, checkpoint: Checkpoint) -> bool:
    """Whether to look unasked: the checkpoint was trained on these pairs, they are few enough, and
    their hashes are there."""
    if own is None or own.pairs.digest not in _trained_on(checkpoint):
        return False
    return own.pairs.num_rows <= _UNASKED and own.hashes is not None


def _warn_of_others(training: Sequence[Dataset], checkpoint: Checkpoint) -> None:
    named = _trained_on(checkpoint)
    for pairs in training:
        if named and pairs.digest not in named:
            logger.warning("training: %s is none that the checkpoint names", pairs.folder)


def _rows_to_train_on(pairs: Dataset) -> dict[int, np.ndarray]:
    """Shard to the rows of its training split."""
    return {
        number: np.flatnonzero(
            pairs.shard(number, columns=["uid", "split"]).table.column("split").to_numpy()
            == "train"
        )
        for number in pairs.records
    }


def _hashes(pictures: _Pictures, rows: Mapping[int, np.ndarray], workers: Workers) -> pa.Table:
    """`schemas.HASHES` of some rows: curate's where they are there, else made by workers."""
    pairs, beside = pictures.pairs, pictures.hashes
    if beside is not None:
        sizes = [pairs.records[number].entry.rows for number in pairs.records]
        firsts = dict(zip(pairs.records, np.cumsum([0, *sizes]).tolist(), strict=False))
        places = [firsts[number] + its for number, its in rows.items()]
        return beside.take(pa.array(np.concatenate([np.zeros(0, np.int64), *places])))
    tasks = [Task(number, len(its)) for number, its in rows.items() if len(its)]
    made = workers.all(partial(_hasher, pairs, rows), tasks, "hash", "pictures")
    return pa.concat_tables([HASHES.empty_table(), *made])


def _hasher(pairs: Dataset, rows: Mapping[int, np.ndarray]) -> Callable[[Task], pa.Table]:
    def work(task: Task) -> pa.Table:
        shard = pairs.shard(task.number)
        return hash_shard(replace(shard, table=shard.table.take(pa.array(rows[task.number]))))

    return work


def _without(ranks: Ranks, leaked: np.ndarray) -> Ranks:
    """The queries of the other pictures and their captions, among all items as before."""
    pictures = ranks.pictures.copy()
    pictures[leaked] = -1
    stays = ~np.isin(ranks.owners, leaked)
    return Ranks(pictures, ranks.captions[stays], ranks.owners[stays])
