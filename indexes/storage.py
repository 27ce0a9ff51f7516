"""An index as a folder: its shards' files, and `index.json`, which is published last.

index.json             format, digest, lineage, sizes, each index shard (its files with their
                       digests, and how it is searched), and the additions with their digests
00000/                 the first index shard; a part of the pictures, in order
  pictures.arrow       uid, url, captions, and where the rows are
  picture_vectors.f32  Q vectors a picture, for exact scores
  picture_index.faiss  HNSW or IVF over them; absent where all are compared
  caption_vectors.f32  one vector a caption, in the order of the captions in pictures.arrow; absent
  caption_index.faiss  where no captions were embedded
00000.json             what index.json says of the first index shard, as soon as it is made
added-00001/           the first addition, if any: an index of its own, of other pictures
tombstones.json        pictures taken down since, here or in an addition; absent where there are
                       none
config.yaml, run.json  of the run that made it
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from indexes.gathering import PICTURE_VECTORS, PICTURES, PICTURES_SCHEMA
from indexes.kinds import Kind
from indexes.proposer import Width
from pipeline.dataset import DRAFT
from pipeline.draft import Draft
from pipeline.errors import ConfigError, DatasetError
from pipeline.lineage import Lineage, canonical_digest
from pipeline.shard import FileEntry, record_name
from pipeline.storage import Folder

INDEX = "index.json"
FORMAT = "viaduct-index/3"
ADDED = "added-{:05d}"
"""Folder of an addition, by its number from 1."""
PICTURE_INDEX, CAPTION_INDEX = "picture_index.faiss", "caption_index.faiss"


@dataclass(frozen=True)
class Searched:
    """How pictures or captions of an index shard are searched."""

    kind: Kind
    vectors_per_item: int
    """In the approximate index; fewer than an item has where they were merged."""
    width: Width | None
    """None for an exact one, like what follows."""
    recall: float | None
    """Share of the true ten best that was found for queries that are not indexed."""
    num_queries: int
    """So many."""

    @staticmethod
    def exactly(vectors_per_item: int) -> "Searched":
        return Searched("exact", vectors_per_item, None, None, 0)

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "vectors_per_item": self.vectors_per_item,
            "width": None if self.width is None else self.width.to_json(),
            "recall": self.recall,
            "num_queries": self.num_queries,
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "Searched":
        width, recall = value["width"], value["recall"]
        return Searched(
            value["kind"],
            int(value["vectors_per_item"]),
            None if width is None else Width(int(width["probes"]), int(width["shortlist"])),
            None if recall is None else float(recall),
            int(value["num_queries"]),
        )


@dataclass(frozen=True)
class IndexShard:
    """A part of the pictures with their captions, indexed together."""

    number: int
    files: Mapping[str, FileEntry]
    """By the names above; `rows` counts pictures or vectors."""
    pictures: Searched
    captions: Searched | None
    """None where no captions are indexed."""

    @property
    def num_pictures(self) -> int:
        return self.files[PICTURES].rows

    def to_json(self) -> dict[str, Any]:
        return {
            "shard": self.number,
            "files": {name: entry.to_json() for name, entry in sorted(self.files.items())},
            "pictures": self.pictures.to_json(),
            "captions": None if self.captions is None else self.captions.to_json(),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "IndexShard":
        captions = value["captions"]
        return IndexShard(
            int(value["shard"]),
            {name: FileEntry.from_json(entry) for name, entry in value["files"].items()},
            Searched.from_json(value["pictures"]),
            None if captions is None else Searched.from_json(captions),
        )


@dataclass(frozen=True)
class Added:
    """An addition, as index.json names it."""

    folder: str
    """Within the index."""
    digest: str

    def to_json(self) -> dict[str, str]:
        return {"folder": self.folder, "digest": self.digest}


@dataclass(frozen=True)
class IndexManifest:
    """The content of index.json."""

    lineage: Lineage
    """`frozen.checkpoint` is the checkpoint that made the vectors."""
    num_queries: int
    """Q, vectors a picture."""
    embed_dim: int
    """E, values a vector."""
    shards: tuple[IndexShard, ...]
    added: tuple[Added, ...] = ()
    """What was added since, in order."""

    @property
    def digest(self) -> str:
        """Covers all but the files' names; no times, hosts or paths."""
        content = self._content()
        for shard in content["shards"]:
            for entry in shard["files"].values():
                del entry["file"]
        return canonical_digest(content)

    @property
    def checkpoint(self) -> str:
        """Digest of the checkpoint that made the vectors."""
        return str(self.lineage.frozen["checkpoint"]["digest"])

    @property
    def has_captions(self) -> bool:
        """Whether captions can be searched for."""
        return any(shard.captions is not None for shard in self.shards)

    @property
    def is_addition(self) -> bool:
        """Whether it is of use within another index alone."""
        return any(parent.kind == "index" for parent in self.lineage.parents)

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "digest": self.digest, **self._content()}

    def _content(self) -> dict[str, Any]:
        return {
            "num_queries": self.num_queries,
            "embed_dim": self.embed_dim,
            "lineage": self.lineage.to_json(),
            "shards": [shard.to_json() for shard in self.shards],
            "added": [added.to_json() for added in self.added],
        }

    @staticmethod
    def from_json(value: Any, name: str) -> "IndexManifest":
        """Read index.json.

        Raises:
            DatasetError: it is damaged, or of another format.
        """
        try:
            if value["format"] != FORMAT:
                raise DatasetError(
                    f"{name}: format={value['format']!r}, this reads {FORMAT!r}; "
                    "make the index anew"
                )
            manifest = IndexManifest(
                lineage=Lineage.from_json(value["lineage"]),
                num_queries=int(value["num_queries"]),
                embed_dim=int(value["embed_dim"]),
                shards=tuple(IndexShard.from_json(shard) for shard in value["shards"]),
                added=tuple(Added(one["folder"], one["digest"]) for one in value["added"]),
            )
            needed = {PICTURES, PICTURE_VECTORS}
            is_whole = all(needed <= shard.files.keys() for shard in manifest.shards)
            is_whole = is_whole and bool(manifest.shards and manifest.checkpoint)
            is_whole = is_whole and all(is_added(added.folder) for added in manifest.added)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DatasetError(f"{name}: field missing or wrong: {error}") from error
        if not is_whole or manifest.digest != value.get("digest"):
            raise DatasetError(f"{name}: its digest is not that of its content")
        return manifest


def is_added(name: str) -> bool:
    """Whether a folder within an index has the name of an addition."""
    return re.fullmatch(r"added-\d{5,}", name) is not None


def unnamed_additions(folder: Folder, named: Collection[str]) -> list[Folder]:
    """Additions in an index other than those that its index.json names: begun, and not ended."""
    return [folder / name for name in folder.entries() if is_added(name) and name not in named]


def read_manifest(folder: Folder) -> IndexManifest | None:
    """What index.json says, or None where there is none; raises DatasetError as `from_json`."""
    value = folder.read_json(INDEX)
    return None if value is None else IndexManifest.from_json(value, f"{folder}/{INDEX}")


def begin(folder: Folder, lineage: Lineage) -> Draft | None:
    """Begin an index, or go on with one that was begun likewise.

    Returns:
        What is to be made; None if the index is published already.

    Raises:
        ConfigError: the folder holds something else, or what another configuration began; the first
            difference is named.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return Draft.begin(folder, "index", PICTURES_SCHEMA, lineage)
    if difference := manifest.lineage.difference(lineage):
        raise ConfigError(f"{folder}: was made otherwise ({difference}); choose another")
    folder.remove_file(DRAFT)
    return None


def commit_shard(folder: Folder, shard: IndexShard) -> None:
    """Write a shard's record, after which it is made."""
    folder.publish_json(record_name(shard.number), shard.to_json())


def committed_shard(folder: Folder, number: int) -> IndexShard | None:
    """A shard that is made and whole; a damaged record counts as absent."""
    try:
        value = folder.read_json(record_name(number))
        shard = None if value is None else IndexShard.from_json(value)
    except (DatasetError, KeyError, TypeError, ValueError, AttributeError):
        return None
    if shard is None or any(folder.size(e.file) != e.bytes for e in shard.files.values()):
        return None
    return shard


def publish(folder: Folder, manifest: IndexManifest) -> None:
    """Write index.json, after which the index is whole; only additions come to it."""
    folder.publish_json(INDEX, manifest.to_json())
    folder.remove_file(DRAFT)
    folder.sweep()
