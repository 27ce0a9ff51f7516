"""Where an index says the things are that it was made of: checkpoint, pairs, features."""

import os
from dataclasses import dataclass, fields, replace
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

    @property
    def _remembered(self) -> dict[str, Any]:
        return _remembered(self.index.folder)

    def open_checkpoint(self) -> Checkpoint:
        """Raises ConfigError where it is not there, or did not make the index."""
        place = self.config.checkpoint or self._remembered.get("checkpoint")
        if place is None:
            raise ConfigError(
                f"{self.index.folder}: remembers no checkpoint; name it with --checkpoint"
            )
        try:
            checkpoint = Checkpoint.open(place)
        except ConfigError as error:
            if self.config.checkpoint is not None:
                raise
            raise ConfigError(
                f"{error}; it was there for the index, or name --checkpoint"
            ) from None
        self.index.check_checkpoint(checkpoint.digest, place)
        return checkpoint

    def open_pairs(self) -> Dataset:
        """Raises ConfigError where `pairs` is not there, or not what was indexed."""
        place = self.config.pairs or self._remembered.get("pairs")
        if place is None:
            raise ConfigError(f"{self.index.folder}: remembers no pairs; name them with --pairs")
        try:
            pairs = Dataset.open(place, "pairs")
        except ConfigError as error:
            if self.config.pairs is not None:
                raise
            raise ConfigError(f"{error}; they were there for the index, or name --pairs") from None
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
        place = self.config.features or self._remembered.get("features")
        if place is None:
            return None
        try:
            features = open_evaluation_view(place)
        except ConfigError as error:
            if self.config.features is not None:
                raise
            message = f"{error}; they were there for the index, or name --features"
            raise ConfigError(message) from None
        check_features(checkpoint, features)
        return features


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
