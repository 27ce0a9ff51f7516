"""`viaduct search`: the pictures closest to a text or to a picture."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Protocol

import numpy as np
import torch
import tyro
import yaml

from indexes.retrieval import FoundPicture, RetrievalIndex
from jobs import settings
from model.checkpoint import Checkpoint
from model.checkpoint_models import load_encoder_of, load_stage1
from model.stage1 import Stage1
from pipeline.captions import normalise
from pipeline.dataset import Dataset
from pipeline.errors import ConfigError, DatasetError
from pipeline.pictures import PictureConfig, read_picture
from pipeline.storage import Folder

_LONGEST_CAPTION = 60
"""Characters of a caption that are printed."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """Find the pictures closest to texts or pictures, exactly, among all that are indexed."""

    index: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="INDEX")]
    """Folder or URI of an index."""

    texts: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEXT")] = ()
    """What the pictures should show, one search a text."""

    image: tuple[str, ...] = ()
    """Picture files to find the like of, one search a file."""

    k: int = 10
    """Pictures to find for each."""

    json: bool = False
    """Print one JSON object instead of text."""

    save: str | None = None
    """Folder to write `results.json` and the pictures found into."""

    checkpoint: str | None = None
    """Checkpoint that made the embeddings, if it is not where `viaduct index` was told."""

    pairs: str | None = None
    """Dataset `pairs` with the pictures to save, if it is not where `viaduct index` was told."""

    weights: str | None = None
    """The vision encoder's .safetensors file, if its weights came from one; for --image."""

    def __post_init__(self) -> None:
        if not self.texts and not self.image:
            raise ConfigError("texts, image: give a text or a picture to search for")
        if not all(normalise(text) for text in self.texts):
            raise ConfigError("texts: one of them is empty")
        if self.k < 1:
            raise ConfigError(f"k: {self.k} is not positive")

    def run(self) -> None:
        """Print what was found, and save it."""
        index = RetrievalIndex.open(self.index)
        places = _remembered(index.folder)
        pictures = self._pictures(index, places) if self.save is not None else None
        embedder = CheckpointEmbedder(self._checkpoint(index, places), self.weights)
        results = search(index, embedder, self.texts, self.image, self.k)
        if self.save is not None and pictures is not None:
            save(results, pictures, Folder.at(self.save))
        text = json.dumps(results, indent=1, ensure_ascii=False) if self.json else show(results)
        sys.stdout.write(text + "\n")

    def _checkpoint(self, index: RetrievalIndex, places: dict[str, Any]) -> Checkpoint:
        """Raises ConfigError where it is not there, or did not make the index."""
        place = self.checkpoint or places.get("checkpoint")
        if place is None:
            raise ConfigError(f"{index.folder}: remembers no checkpoint; name it with --checkpoint")
        try:
            checkpoint = Checkpoint.open(place)
        except ConfigError as error:
            if self.checkpoint is not None:
                raise
            raise ConfigError(
                f"{error}; it was there for the index, or name --checkpoint"
            ) from None
        index.check_checkpoint(checkpoint.digest, place)
        return checkpoint

    def _pictures(self, index: RetrievalIndex, places: dict[str, Any]) -> Dataset:
        """Raises ConfigError where `pairs` is not there, or not what was indexed."""
        place = self.pairs or places.get("pairs")
        if place is None:
            raise ConfigError(f"{index.folder}: remembers no pairs; name them with --pairs")
        try:
            pairs = Dataset.open(place, "pairs")
        except ConfigError as error:
            if self.pairs is not None:
                raise
            raise ConfigError(f"{error}; they were there for the index, or name --pairs") from None
        indexed = {p.kind: p.digest for p in index.manifest.lineage.parents}["pairs"]
        if pairs.digest != indexed:
            raise ConfigError(
                f"{index.folder} was made of pairs {indexed[:16]}, not of {place} "
                f"({pairs.digest[:16]})"
            )
        return pairs


class Embedder(Protocol):
    """What turns queries into vectors."""

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """float32[n, E], L2-normalised."""

    def pictures(self, files: Sequence[str]) -> np.ndarray:
        """float32[n, Q, E], L2-normalised. Raises ConfigError for a file that is no picture."""


@dataclass(frozen=True)
class CheckpointEmbedder:
    """Embeds with a stage-1 checkpoint; model and encoder are loaded when they are needed."""

    checkpoint: Checkpoint
    weights: str | None = None
    """Of the vision encoder, see `load_encoder_of`."""

    @cached_property
    def _stage1(self) -> Stage1:
        return load_stage1(self.checkpoint)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        return self._stage1.embed_texts(list(texts)).numpy()

    def pictures(self, files: Sequence[str]) -> np.ndarray:
        pictures = [read_picture(file, PictureConfig()) for file in files]
        encoder = load_encoder_of(self.checkpoint, self.weights)
        transform = encoder.transform()
        tokens = torch.cat([encoder(transform(picture)[None]) for picture in pictures])
        return self._stage1.embed_pictures(tokens).numpy()


def search(
    index: RetrievalIndex,
    embedder: Embedder,
    texts: Sequence[str],
    images: Sequence[str],
    k: int,
) -> dict[str, Any]:
    """Search for texts, then for pictures.

    Returns:
        What results.json holds: the index's digest and, a search each, the query and its results.

    Raises:
        ConfigError: a file is no picture.
    """
    searches: list[dict[str, Any]] = []
    if texts:
        found = index.search_texts(embedder.texts([normalise(text) for text in texts]), k)
        searches += [
            {"text": t, "results": _results(its)} for t, its in zip(texts, found, strict=True)
        ]
    if images:
        found = index.search_pictures(embedder.pictures(images), k)
        searches += [
            {"image": f, "results": _results(its)} for f, its in zip(images, found, strict=True)
        ]
    return {"index": index.digest, "searches": searches}


def _results(found: Sequence[FoundPicture]) -> list[dict[str, Any]]:
    return [
        {
            "rank": rank,
            "score": round(picture.score, 6),
            "uid": picture.uid.hex(),
            "url": picture.url,
            "captions": picture.captions,
            "shard": picture.shard,
            "row": picture.row,
        }
        for rank, picture in enumerate(found, 1)
    ]


def save(results: dict[str, Any], pairs: Dataset, folder: Folder) -> None:
    """Write the pictures found as `SEARCH-RANK.jpg`, and results.json, which names them.

    A picture that was taken down from `pairs` has no file.

    Raises:
        ConfigError: the folder cannot be written.
        DatasetError: a shard of `pairs` is missing or damaged.
    """
    folder.create()
    for number, one in enumerate(results["searches"]):
        for result in one["results"]:
            picture = _picture(pairs, result)
            if picture is not None:
                result["file"] = f"{number:02d}-{result['rank']:02d}.jpg"
                folder.publish(result["file"], picture)
    folder.publish_json("results.json", results)


def _picture(pairs: Dataset, result: dict[str, Any]) -> bytes | None:
    shard = pairs.shard(result["shard"])
    row = shard.table.slice(result["row"], 1).select(["uid", "picture"]).to_pylist()[0]
    if row["uid"].hex() != result["uid"]:
        raise DatasetError(f"{pairs.folder}: row {result['row']} is not picture {result['uid']}")
    return None if row["uid"] in shard.tombstones else row["picture"]


def show(results: dict[str, Any]) -> str:
    """The results as lines for people."""
    return "\n\n".join("\n".join(_lines(one)) for one in results["searches"])


def _lines(one: dict[str, Any]) -> Iterator[str]:
    yield _printable(one["text"] if "text" in one else f"like {one['image']}")
    if not one["results"]:
        yield "  nothing is indexed"
        return
    rows = [("rank", "score", "shard:row", "caption", "source"), *map(_row, one["results"])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)]
        yield "  " + "  ".join([*cells, row[-1]])


def _row(result: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(result["rank"]),
        f"{result['score']:.4f}",
        f"{result['shard']}:{result['row']}",
        _shortened(result["captions"]),
        _printable(result["url"]),
    )


def _shortened(captions: Sequence[str]) -> str:
    if not captions:
        return "-"
    first = _printable(captions[0])
    if len(first) > _LONGEST_CAPTION:
        first = first[: _LONGEST_CAPTION - 3] + "..."
    return first + (f" (+{len(captions) - 1})" if len(captions) > 1 else "")


def _printable(text: str) -> str:
    """Without what a terminal would obey: the web's texts are anybody's."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _remembered(folder: Folder) -> dict[str, Any]:
    """Where `viaduct index` was told things are; empty where nothing is remembered."""
    if folder.size(settings.FILE) is None:
        return {}
    try:
        values = yaml.safe_load(folder.read(settings.FILE))
    except (yaml.YAMLError, UnicodeDecodeError):
        return {}
    return values if isinstance(values, dict) else {}
