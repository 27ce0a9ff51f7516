"""Where an index says the things are that it was made of: checkpoint, pairs, features."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import yaml

from indexes.retrieval import RetrievalIndex
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

    pairs: str | None = None
    """Dataset `pairs` with the pictures, if it is not where `viaduct index` was told."""

    features: str | None = None
    """Dataset `features` beside `pairs`, for --rerank; without it, and if `viaduct index` was told
    of none, the pictures found are encoded again."""

    weights: str | None = None
    """The vision encoder's .safetensors file, if its weights came from one."""

    def from_anywhere(self) -> "PlacesConfig":
        """With absolute paths, for a process in another folder."""
        places = {field.name: getattr(self, field.name) for field in fields(self)}
        told = {name: absolute(place) for name, place in places.items() if place is not None}
        return replace(self, **told)


@dataclass(frozen=True)
class Places:
    """What an index was made of, found where it was or where the user says."""

    index: RetrievalIndex
    config: PlacesConfig

    def open_checkpoint(self) -> Checkpoint:
        """Raises ConfigError where it is not there, or did not make the index."""
        place = self._place("checkpoint")
        if place is None:
            raise ConfigError(
                f"{self.index.folder}: remembers no checkpoint; name it with --checkpoint"
            )
        with self._hint("checkpoint", "it was"):
            checkpoint = Checkpoint.open(place)
        self.index.check_checkpoint(checkpoint.digest, place)
        return checkpoint

    def open_pairs(self) -> Dataset:
        """Raises ConfigError where `pairs` is not there, or not what was indexed."""
        place = self._place("pairs")
        if place is None:
            raise ConfigError(f"{self.index.folder}: remembers no pairs; name them with --pairs")
        with self._hint("pairs", "they were"):
            pairs = Dataset.open(place, "pairs")
        indexed = {p.kind: p.digest for p in self.index.manifest.lineage.parents}["pairs"]
        if pairs.digest != indexed:
            raise ConfigError(
                f"{self.index.folder} was made of pairs {indexed[:16]}, not of {place} "
                f"({pairs.digest[:16]})"
            )
        return pairs

    def open_features(self, checkpoint: Checkpoint) -> Dataset | None:
        """None where none were named to this command or to `viaduct index`.

        Raises:
            ConfigError: they are not there, or of another encoder than the checkpoint's.
        """
        place = self._place("features")
        if place is None:
            return None
        with self._hint("features", "they were"):
            features = open_evaluation_view(place)
        check_features(checkpoint, features)
        return features

    @cached_property
    def _remembered(self) -> dict[str, Any]:
        return _remembered(self.index.folder)

    def _place(self, name: str) -> str | None:
        """Where a thing is, as this command or else `viaduct index` was told."""
        return getattr(self.config, name) or self._remembered.get(name)

    @contextmanager
    def _hint(self, name: str, was: str) -> Iterator[None]:
        """What is not where `viaduct index` was told may be named to this command."""
        try:
            yield
        except ConfigError as error:
            if getattr(self.config, name) is not None:
                raise
            raise ConfigError(f"{error}; {was} there for the index, or name --{name}") from None


def absolute(location: str) -> str:
    """A path from anywhere; a URI as it is."""
    return location if "://" in location else os.path.abspath(os.path.expanduser(location))


def _remembered(folder: Folder) -> dict[str, Any]:
    """Where `viaduct index` was told things are; empty where nothing is remembered."""
    if folder.size(settings.FILE) is None:
        return {}
    try:
        values = yaml.safe_load(folder.read(settings.FILE))
    except (yaml.YAMLError, UnicodeDecodeError):
        return {}
    return values if isinstance(values, dict) else {}
