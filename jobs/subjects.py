"""What a model is to look at: picture files, or rows of cached features."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from jobs.device import Device, torch_device
from model.checkpoint import Checkpoint
from model.checkpoint_frozen import load_encoder_of
from model.checkpoint_models import check_features
from pipeline.dataset import Dataset, check_side_by_side
from pipeline.errors import ConfigError
from pipeline.loader import as_tensor
from pipeline.pictures import PictureConfig, read_picture
from pipeline.token_reader import TokenReader, has_tokens
from pipeline.views import open_evaluation_view


@dataclass(frozen=True, kw_only=True)
class SubjectsConfig:
    """Which pictures, if they are not named as files, and how they are looked at."""

    features: str | None = None
    """Dataset of kind `features` to look at instead of picture files."""

    pairs: str | None = None
    """Dataset `pairs` beside the features: tells the URLs of pictures, and their split."""

    split: Literal["all", "train", "validation", "test"] = "all"
    """Which pictures of the features; needs --pairs."""

    limit: int | None = None
    """Pictures of the features at most, the first ones."""

    batch_size: int = 16
    """Pictures at once."""

    weights: str | None = None
    """Weights of the vision encoder, where they came from a file; for picture files."""

    device: Device = "auto"
    """Where to compute; `auto` takes a GPU where there is one."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: {value} is not positive")
        for name in ("pairs", "limit"):
            if getattr(self, name) is not None and self.features is None:
                raise ConfigError(f"{name}: goes with --features")
        if self.split != "all" and self.pairs is None:
            raise ConfigError(f"split: to take {self.split!r} alone name --pairs")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device: there is no GPU that PyTorch can use")

    def check_files(self, pictures: Sequence[str]) -> None:
        """Raises ConfigError unless there are either picture files or features."""
        if not pictures and self.features is None:
            raise ConfigError("pictures: name at least one file, or --features")
        if pictures and self.features is not None:
            raise ConfigError("pictures: name files or --features, not both")

    @property
    def torch_device(self) -> str:
        """Where to compute."""
        return torch_device(self.device)


@dataclass(frozen=True)
class Subjects:
    """Pictures by number, with their image tokens on demand."""

    names: list[dict[str, str]]
    """Of each its `picture`: file, URL or, where that is not known, uid; of a row also its `uid`"""
    tokens: Callable[[range], Float[Tensor, "B P C"]]

    def __len__(self) -> int:
        return len(self.names)


def open_subjects(
    checkpoint: Checkpoint, pictures: Sequence[str], config: SubjectsConfig
) -> Subjects:
    """What a checkpoint is to look at.

    Args:
        checkpoint: of any stage; the vision encoder is the one that it was trained on.
        pictures: picture files, unless `config` names features.
        config: see there.

    Raises:
        ConfigError: a picture cannot be read, the features are another encoder's, or none is left.
    """
    if config.features is None:
        return _of_files(checkpoint, pictures, config)
    features = open_evaluation_view(config.features)
    check_features(checkpoint, features)
    pairs = None if config.pairs is None else Dataset.open(config.pairs, "pairs")
    return _of_rows(features, pairs, config)


def _of_files(checkpoint: Checkpoint, pictures: Sequence[str], config: SubjectsConfig) -> Subjects:
    opened = [read_picture(file, PictureConfig()) for file in pictures]
    encoder = load_encoder_of(checkpoint, config.weights).to(config.torch_device)
    transform = encoder.transform()

    def tokens(numbers: range) -> Tensor:
        shown = torch.stack([transform(opened[number]) for number in numbers])
        return encoder(shown.to(config.torch_device))

    return Subjects([{"picture": file} for file in pictures], tokens)


def _of_rows(features: Dataset, pairs: Dataset | None, config: SubjectsConfig) -> Subjects:
    if pairs is not None:
        check_side_by_side(features, pairs)
    names: list[dict[str, str]] = []
    places: list[tuple[int, int]] = []
    for number in features.records:
        some = list(_rows(features, pairs, number, config.split))
        places += [(number, row) for row, _ in some]
        names += [name for _, name in some]
        if config.limit is not None and len(names) >= config.limit:
            break
    names, places = names[: config.limit], places[: config.limit]
    if not names:
        of_split = "" if config.split == "all" else f" in its split {config.split!r}"
        raise ConfigError(f"{features.folder}: has no picture{of_split}")
    reader = TokenReader(features)

    def tokens(numbers: range) -> Tensor:
        rows = reader.read([places[number] for number in numbers])
        return as_tensor(rows).to(config.torch_device)

    return Subjects(names, tokens)


def _rows(
    features: Dataset, pairs: Dataset | None, number: int, split: str
) -> list[tuple[int, dict[str, str]]]:
    """Row and name of each picture of a shard that is there and of the split."""
    shard = features.shard(number)
    here = has_tokens(shard)
    urls = None
    if pairs is not None:
        beside = pairs.shard(number)
        here = here & np.asarray(beside.live)
        if split != "all":
            here = here & (beside.table.column("split").to_numpy() == split)
        urls = beside.table.column("url").to_pylist()
    uids = [uid.hex() for uid in shard.table.column("uid").to_pylist()]
    return [
        (row, {"picture": uids[row] if urls is None else urls[row], "uid": uids[row]})
        for row in np.flatnonzero(here).tolist()
    ]
