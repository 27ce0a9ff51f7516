"""FAISS's part of an index as a file."""

from typing import Any

import faiss

from indexes.kinds import Kind
from indexes.proposer import Proposer
from pipeline.errors import DatasetError
from pipeline.shard import FileEntry
from pipeline.storage import Folder

_io: Any = faiss  # its type stubs lack these classes

_CLASSES: dict[str, Any] = {
    "hnsw": faiss.IndexHNSWSQ,
    "ivf": faiss.IndexIVFScalarQuantizer,
    "ivfpq": faiss.IndexPreTransform,
}
_MAPPED = {
    "hnsw": faiss.IO_FLAG_MMAP_IFC,
    "ivf": faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY,
    "ivfpq": 0,  # FAISS has its blocks of codes in memory only
}


def write_proposer(folder: Folder, name: str, proposer: Proposer) -> FileEntry:
    """Publish a proposer; `rows` counts its vectors."""
    with folder.temporary() as file:
        faiss.write_index(proposer.index, _io.PyCallbackIOWriter(file.stream.write))
        file.publish(name)
        return FileEntry(name, len(proposer), file.stream.bytes, file.digest)


def read_proposer(folder: Folder, name: str, kind: Kind, *, to_add: bool = False) -> Proposer:
    """Open a proposer: its lists or links memory-mapped where the file is local.

    Args:
        folder, name: of the file.
        kind: that it has to be.
        to_add: into memory, so that vectors can be added.

    Raises:
        DatasetError: the file is damaged, or of another kind.
    """
    path = f"{folder}/{name}"
    try:
        if folder.is_local:
            index = faiss.read_index(path, 0 if to_add else _MAPPED[kind])
        else:
            with folder.fs.open_input_stream(f"{folder.path}/{name}") as stream:
                index = faiss.read_index(_io.PyCallbackIOReader(stream.read))
    except (RuntimeError, OSError) as error:
        raise DatasetError(f"{path}: cannot be read: {_short(error)}") from error
    if not isinstance(index, _CLASSES[kind]):
        raise DatasetError(f"{path}: is no {kind} index")
    return Proposer(kind, index)


def _short(error: Exception) -> str:
    """FAISS puts its source and a condition around what it has to say."""
    return str(error).strip().splitlines()[0 if isinstance(error, OSError) else -1][-200:]
