"""A proposer trained and filled with vectors, in steps that survive a kill."""

import logging
import time

import numpy as np

from indexes.faiss_files import read_proposer, write_proposer
from indexes.kinds import Kind
from indexes.merging import merged
from indexes.proposer import Proposer, training_vectors
from pipeline.errors import DatasetError
from pipeline.storage import Folder

logger = logging.getLogger(__name__)

_VECTORS_AT_ONCE = 1 << 16
_SAVE_EVERY_S = 60.0


def filled(
    work: Folder, name: str, vectors: np.ndarray, per_item: int, kind: Kind, seed: int
) -> Proposer:
    """A proposer of all vectors, begun anew or gone on with.

    It is saved once it is trained and every minute after that. What it holds in the end does not
    depend on when it was killed; of HNSW, whose links depend on which thread comes first, that is
    true of one thread.

    Args:
        work: a local folder for what is saved.
        name: of the saved files, which are `NAME-ITEMS.faiss`.
        vectors: float32[N, A, E], which may be memory-mapped; at least one item.
        per_item: vectors of an item in the proposer; where they are fewer than A, A are merged.
        kind: hnsw, ivf or ivfpq.
        seed: of the vectors that are trained on.
    """
    proposer, done = _saved(work, name, kind)
    if proposer is None:
        proposer = _trained(vectors, per_item, kind, seed)
        _save(work, name, proposer, 0)
    saved_s = time.monotonic()
    at_once = max(1, _VECTORS_AT_ONCE // vectors.shape[1])
    for start in range(done, len(vectors), at_once):
        block = vectors[start : start + at_once]
        proposer.add(merged(block, per_item).reshape(-1, vectors.shape[2]))
        if time.monotonic() - saved_s >= _SAVE_EVERY_S:
            _save(work, name, proposer, start + len(block))
            saved_s = time.monotonic()
            logger.info("added index=%s items=%d of=%d", name, start + len(block), len(vectors))
    return proposer


def _trained(vectors: np.ndarray, per_item: int, kind: Kind, seed: int) -> Proposer:
    total = len(vectors) * per_item
    count = training_vectors(kind, total)
    dice = np.random.default_rng(seed)
    numbers = np.sort(dice.choice(total, count, replace=False))
    logger.info("training kind=%s vectors=%d of=%d", kind, count, total)
    if per_item == vectors.shape[1]:
        return Proposer.trained(kind, vectors.reshape(total, -1)[numbers], total, seed)
    items, which = np.unique(numbers // per_item, return_inverse=True)
    sample = np.empty((count, vectors.shape[2]), np.float32)
    at_once = max(1, _VECTORS_AT_ONCE // vectors.shape[1])
    for start in range(0, len(items), at_once):
        block = merged(vectors[items[start : start + at_once]], per_item)
        here = (which >= start) & (which < start + at_once)
        sample[here] = block[which[here] - start, numbers[here] % per_item]
    return Proposer.trained(kind, sample, total, seed)


def _saved(work: Folder, name: str, kind: Kind) -> tuple[Proposer | None, int]:
    """The last one that was saved and can be read, with the number of its items."""
    for file in sorted(work.files(), reverse=True):
        if file.startswith(f"{name}-") and file.endswith(".faiss"):
            try:
                proposer = read_proposer(work, file, kind, to_add=True)
            except DatasetError:
                continue
            return proposer, int(file.removeprefix(f"{name}-").removesuffix(".faiss"))
    return None, 0


def _save(work: Folder, name: str, proposer: Proposer, items: int) -> None:
    earlier = [file for file in work.files() if file.startswith(f"{name}-")]
    write_proposer(work, f"{name}-{items:012d}.faiss", proposer)
    for file in earlier:
        work.remove_file(file)
