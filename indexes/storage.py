"""An index as a folder: its files, and `index.json`, which is published last and names them.

index.json             format, digest, lineage, sizes, and the files with their digests
pictures.arrow         the pictures: uid, url, captions, and where their rows are
picture_vectors.faiss  Q vectors a picture; a vector's id is row * Q + query
caption_vectors.faiss  one vector a caption; its id is its number among the captions of
                       pictures.arrow; absent where no captions were embedded
tombstones.json        pictures taken down since; absent where there are none
config.yaml, run.json  of the run that made it
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import faiss
import pyarrow as pa

from indexes.maxsim import MaxSimIndex
from pipeline.dataset import DRAFT
from pipeline.draft import Draft
from pipeline.errors import ConfigError, DatasetError
from pipeline.lineage import Lineage, canonical_digest
from pipeline.schemas import UID
from pipeline.shard import FileEntry
from pipeline.storage import Folder, TemporaryFile

_io: Any = faiss  # its type stubs lack these classes

INDEX = "index.json"
FORMAT = "viaduct-index/1"
PICTURES, PICTURE_VECTORS, CAPTION_VECTORS = (
    "pictures.arrow",
    "picture_vectors.faiss",
    "caption_vectors.faiss",
)
PICTURES_SCHEMA = pa.schema(
    [
        ("uid", UID),
        ("url", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("row", pa.int64()),
        ("shard", pa.int32()),
        ("shard_row", pa.int32()),
    ]
)
"""`row` counts over the whole dataset, `shard_row` within the shard; `captions` are those kept."""


@dataclass(frozen=True)
class IndexManifest:
    """The content of index.json."""

    lineage: Lineage
    """`frozen.checkpoint` is the checkpoint that made the vectors."""
    num_queries: int
    """Q, vectors a picture."""
    embed_dim: int
    """E, values a vector."""
    files: Mapping[str, FileEntry]
    """By the names above; `rows` counts pictures or vectors."""

    @property
    def digest(self) -> str:
        """Covers all but the files' names; no times, hosts or paths."""
        content = self._content()
        for entry in content["files"].values():
            del entry["file"]
        return canonical_digest(content)

    @property
    def checkpoint(self) -> str:
        """Digest of the checkpoint that made the vectors."""
        return str(self.lineage.frozen["checkpoint"]["digest"])

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "digest": self.digest, **self._content()}

    def _content(self) -> dict[str, Any]:
        return {
            "num_queries": self.num_queries,
            "embed_dim": self.embed_dim,
            "lineage": self.lineage.to_json(),
            "files": {name: entry.to_json() for name, entry in sorted(self.files.items())},
        }

    @staticmethod
    def from_json(value: Any, name: str) -> "IndexManifest":
        """Read index.json.

        Raises:
            DatasetError: it is damaged, or of a later format.
        """
        try:
            if value["format"] != FORMAT:
                raise DatasetError(f"{name}: format={value['format']!r}, this reads {FORMAT!r}")
            files = {key: FileEntry.from_json(entry) for key, entry in value["files"].items()}
            manifest = IndexManifest(
                lineage=Lineage.from_json(value["lineage"]),
                num_queries=int(value["num_queries"]),
                embed_dim=int(value["embed_dim"]),
                files=files,
            )
            is_whole = {PICTURES, PICTURE_VECTORS} <= files.keys() and manifest.checkpoint
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DatasetError(f"{name}: field missing or wrong: {error}") from error
        if not is_whole or manifest.digest != value.get("digest"):
            raise DatasetError(f"{name}: its digest is not that of its content")
        return manifest


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


def publish(folder: Folder, manifest: IndexManifest) -> None:
    """Write index.json, after which the index is whole and never changes."""
    folder.publish_json(INDEX, manifest.to_json())
    folder.remove_file(DRAFT)
    folder.sweep()


def write_vectors(folder: Folder, name: str, index: MaxSimIndex) -> FileEntry:
    """Publish vectors as a FAISS file; equal vectors give equal bytes."""
    with folder.temporary() as file:
        faiss.write_index(index.index, _io.PyCallbackIOWriter(file.stream.write))
        entry = FileEntry(
            stored_name(folder, name, file), index.index.ntotal, file.stream.bytes, file.digest
        )
        file.publish(entry.file)
    return entry


def stored_name(folder: Folder, name: str, file: TemporaryFile) -> str:
    """The name of a written file; on an object store the digest is in it: no attempt overwrites."""
    stem, _, suffix = name.partition(".")
    return name if folder.is_local else f"{stem}-{file.digest[:16]}.{suffix}"


def read_vectors(folder: Folder, entry: FileEntry, vectors_per_item: int) -> MaxSimIndex:
    """Open a FAISS file, memory-mapped where it is local.

    Raises:
        DatasetError: it is damaged, or not what index.json says.
    """
    name = f"{folder}/{entry.file}"
    try:
        if folder.is_local:
            index = faiss.read_index(name, faiss.IO_FLAG_MMAP_IFC)
        else:
            with folder.fs.open_input_stream(f"{folder.path}/{entry.file}") as stream:
                index = faiss.read_index(_io.PyCallbackIOReader(stream.read))
        if not isinstance(index, faiss.IndexIDMap) or index.ntotal != entry.rows:
            raise DatasetError(f"{name}: is not what {INDEX} says")
        return MaxSimIndex(index, vectors_per_item)
    except (RuntimeError, ValueError, OSError) as error:
        raise DatasetError(f"{name}: cannot be read: {_short(error)}") from error


def _short(error: Exception) -> str:
    """FAISS puts its source and a condition around what it has to say."""
    return str(error).strip().splitlines()[0][-200:]
