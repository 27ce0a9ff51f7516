"""Where an index says the things are that it was made of: checkpoint, pairs, features."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any

import tyro
import yaml

from indexes.parts import Part
from indexes.retrieval import FoundPicture, RetrievalIndex
from jobs import settings
from model.checkpoint import Checkpoint
from model.checkpoint_models import check_features
from pipeline.dataset import Dataset
from pipeline.errors import ConfigError
from pipeline.storage import Folder
from pipeline.views import open_evaluation_view


@dataclass(frozen=True, kw_only=True)
class PlacesConfig:
    """Where things are, if they are not where `viaduct index` was told."""

    checkpoint: str | None = None
    """Checkpoint that made the embeddings, if it is not where `viaduct index` was told."""

    pairs: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Dataset `pairs` with the pictures, if it is not where `viaduct index` was told. Of an index
    with additions the option may be given several times, in any order."""

    features: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Dataset `features` beside `pairs`, for --rerank; several as with --pairs. Without it, and if
    `viaduct index` was told of none, the pictures found are encoded again."""

    weights: str | None = None
    """The vision encoder's .safetensors file, if its weights came from one."""

    def from_anywhere(self) -> "PlacesConfig":
        """With absolute paths, for a process in another folder."""
        return replace(
            self,
            checkpoint=None if self.checkpoint is None else absolute(self.checkpoint),
            pairs=tuple(map(absolute, self.pairs)),
            features=tuple(map(absolute, self.features)),
            weights=None if self.weights is None else absolute(self.weights),
        )


@dataclass(frozen=True)
class Places:
    """What an index was made of, found where it was or where the user says."""

    index: RetrievalIndex
    config: PlacesConfig

    def open_checkpoint(self) -> Checkpoint:
        """Raises ConfigError where it is not there, or did not make the index."""
        remembered = (str(its["checkpoint"]) for its in self._remembered if its.get("checkpoint"))
        place = self.config.checkpoint or next(remembered, None)
        if place is None:
            raise ConfigError(
                f"{self.index.folder}: remembers no checkpoint; name it with --checkpoint"
            )
        given = self.config.checkpoint is not None
        with nullcontext() if given else _hint("checkpoint", "it was"):
            checkpoint = Checkpoint.open(place)
        self.index.check_checkpoint(checkpoint.digest, place)
        return checkpoint

    def open_pairs(self) -> tuple[Dataset, ...]:
        """`pairs` of each part, by their digests; raises ConfigError where one is not there, or not
        what was indexed."""
        parts = self.index.parts
        given = {}
        for place in self.config.pairs:
            pairs = Dataset.open(place, "pairs")
            _check_pairs(pairs, place, parts, self.index.folder)
            given[pairs.digest] = pairs
        return tuple(
            given.get(part.pairs_digest) or self._remembered_pairs(part, remembered.get("pairs"))
            for part, remembered in zip(parts, self._remembered, strict=True)
        )

    def open_features(self, checkpoint: Checkpoint) -> tuple[Dataset | None, ...]:
        """Of each part, None where none were named to this command or to `viaduct index`.

        An index does not know the digest of its features: they are found to be those of a part by
        its first picture.

        Raises:
            ConfigError: they are not there, of another encoder than the checkpoint's, or given and
                of no part.
        """
        firsts = [self.index.first_of(part) for part in range(len(self.index.parts))]
        found: list[Dataset | None] = [None] * len(firsts)
        for place in self.config.features:
            features = open_evaluation_view(place)
            check_features(checkpoint, features)
            theirs = [part for part, first in enumerate(firsts) if _holds(features, first)]
            if not theirs:
                raise ConfigError(f"{self.index.folder}: {place} has other pictures' features")
            for part in theirs:
                found[part] = features
        for part, remembered in enumerate(self._remembered):
            if found[part] is None and remembered.get("features"):
                with _hint("features", "they were"):
                    features = open_evaluation_view(remembered["features"])
                check_features(checkpoint, features)
                found[part] = features
        return tuple(found)

    @cached_property
    def _remembered(self) -> list[dict[str, Any]]:
        """Of each part where `viaduct index` was told things are."""
        return [_remembered(part.folder) for part in self.index.parts]

    def _remembered_pairs(self, part: Part, place: str | None) -> Dataset:
        if not place:
            raise ConfigError(f"{part.folder}: remembers no pairs; name them with --pairs")
        with _hint("pairs", "they were"):
            pairs = Dataset.open(place, "pairs")
        _check_pairs(pairs, place, [part], part.folder)
        return pairs


def absolute(location: str) -> str:
    """A path from anywhere; a URI as it is."""
    return location if "://" in location else os.path.abspath(os.path.expanduser(location))


@contextmanager
def _hint(name: str, was: str) -> Iterator[None]:
    """What is not where `viaduct index` was told may be named to this command."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{error}; {was} there for the index, or name --{name}") from None


def _check_pairs(pairs: Dataset, place: str, parts: Sequence[Part], folder: Folder) -> None:
    """Raises ConfigError unless one of these parts of an index was made of these pairs."""
    indexed = list(dict.fromkeys(part.pairs_digest for part in parts))
    if pairs.digest not in indexed:
        raise ConfigError(
            f"{folder} was made of pairs {', '.join(digest[:16] for digest in indexed)}, not of "
            f"{place} ({pairs.digest[:16]})"
        )


def _holds(features: Dataset, picture: FoundPicture) -> bool:
    """Whether a picture is in its row of a dataset."""
    record = features.records.get(picture.shard)
    if record is None or picture.row >= record.entry.rows:
        return False
    uids = features.shard(picture.shard, columns=["uid"]).table.column("uid")
    return bool(uids[picture.row].as_py() == picture.uid)


def _remembered(folder: Folder) -> dict[str, Any]:
    """Where `viaduct index` was told things are; empty where nothing is remembered."""
    if folder.size(settings.FILE) is None:
        return {}
    try:
        values = yaml.safe_load(folder.read(settings.FILE))
    except (yaml.YAMLError, UnicodeDecodeError):
        return {}
    return values if isinstance(values, dict) else {}
