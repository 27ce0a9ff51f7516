"""Cached views of the same pictures: which there are, and which of them a picture shows when."""

import re
from collections.abc import Sequence

import numpy as np

from pipeline.dataset import Dataset, check_side_by_side
from pipeline.errors import ConfigError
from pipeline.shard import MANIFEST
from pipeline.shard_cache import CacheConfig
from pipeline.shuffle import key_of
from pipeline.storage import Folder

_VIEW = re.compile(r"view-(\d+)")


def open_views(location: str, cache: CacheConfig | None = None) -> list[Dataset]:
    """The views of cached features, side by side; the first one is for evaluation.

    Args:
        location: of a dataset of kind `features`, which is its only view, or of a folder with
            `view-0`, `view-1` and so on.
        cache: of shards that are not local; None takes the cache as it is by default.

    Raises:
        ConfigError: there is none, one is missing or not finished, or they do not match.
        DatasetError: a dataset.json is damaged.
    """
    folder, cache = Folder.at(location), cache or CacheConfig()
    names = [] if folder.size(MANIFEST) is not None else folder.entries()
    numbers = sorted(int(found[1]) for found in map(_VIEW.fullmatch, names) if found)
    if not numbers:
        return [Dataset.open(folder, "features", cache)]
    if numbers != list(range(len(numbers))):
        missing = min(set(range(len(numbers))) - set(numbers))
        raise ConfigError(f"{folder}: holds view-{numbers[-1]}, but no view-{missing}")
    views = [Dataset.open(folder / f"view-{number}", "features", cache) for number in numbers]
    for number, view in enumerate(views):
        told = view.manifest.lineage.config.get("view")
        if told != number:
            raise ConfigError(f"{view.folder}: was made as view {told}; give it its name back")
        check_same_encoder(views[0], view)
    check_side_by_side(*views)
    return views


def open_evaluation_view(location: str, cache: CacheConfig | None = None) -> Dataset:
    """The view that measures are taken on; arguments and errors as those of `open_views`."""
    return open_views(location, cache)[0]


def check_same_encoder(first: Dataset, other: Dataset) -> None:
    """Check that two datasets of features are of one encoder.

    Raises:
        ConfigError: they are not; both are named.
    """
    encoders = [it.manifest.lineage.frozen.get("encoder") for it in (first, other)]
    if encoders[0] != encoders[1]:
        raise ConfigError(f"{first.folder} and {other.folder} are features of two encoders")


def view_of(
    uids: Sequence[bytes], epoch: int | np.ndarray, num_views: int, seed: int
) -> np.ndarray:
    """Which view each picture shows in an epoch: all of them in turn, beginning with one of chance.

    Args:
        uids: of the pictures.
        epoch: of all or, as int64[N], of each.
        num_views: how many there are.
        seed: of the training.

    Returns:
        int64[N], each in [0, num_views).
    """
    begins = np.array([int.from_bytes(uid[:8], "big") for uid in uids], np.uint64)
    first = (key_of(seed, begins) % np.uint64(num_views)).astype(np.int64)
    return (first + epoch) % num_views
