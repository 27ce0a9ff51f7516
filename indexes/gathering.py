"""What an index shard holds of its datasets, as files: pictures, and vectors for exact scores.

Vectors are written one after the other as float32, little-endian, and nothing else, so that a file
is one array that can be memory-mapped, written row by row, and read by anything.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from indexes.exact import check_lengths
from indexes.sources import Sources
from pipeline.dataset import Shard
from pipeline.embeddings import Embeddings, embedded_texts, shard_embeddings
from pipeline.errors import DatasetError
from pipeline.schemas import UID
from pipeline.shard import FileEntry, ShardWriter
from pipeline.storage import Folder, TemporaryFile

PICTURES, PICTURE_VECTORS, CAPTION_VECTORS = (
    "pictures.arrow",
    "picture_vectors.f32",
    "caption_vectors.f32",
)
PICTURES_SCHEMA = pa.schema(
    [
        ("uid", UID),
        ("url", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("shard", pa.int32()),
        ("shard_row", pa.int32()),
    ]
)
"""`captions` are those kept; `shard` is of the dataset, `shard_row` counts within it."""

_GATHERED = "gathered.json"
_ROWS_PER_BATCH = 1024


def gather(
    home: Folder,
    work: Folder,
    sources: Sources,
    numbers: Sequence[int],
    advance: Callable[[int], None],
) -> Mapping[str, FileEntry]:
    """Write the files of one index shard, unless they are there already.

    Args:
        home: a local folder for the files.
        work: a local folder in which it is remembered that they are there.
        sources: see there.
        numbers: the shards of the datasets that are indexed together.
        advance: is told the number of rows after each.

    Returns:
        The files by name; those of captions where `sources` has their embeddings.

    Raises:
        ConfigError: the captions are not those that were embedded.
        DatasetError: a shard is damaged.
    """
    there = _gathered_before(home, work)
    if there is not None:
        advance(sum(sources.images.records[number].entry.rows for number in numbers))
        return there
    known = sources.known_rows(numbers)
    with contextlib.ExitStack() as stack:
        table, pictures, captions = (stack.enter_context(home.temporary()) for _ in range(3))
        writer = ShardWriter(table, PICTURES_SCHEMA, _ROWS_PER_BATCH)
        for number in numbers:
            pairs = sources.pairs.shard(number)
            texts = sources.texts.shard(number) if sources.texts else None
            captioned = sources.captions.shard(number) if sources.captions else pairs
            keep = _wanted(pairs, sources.split) & captioned.live.to_numpy() & ~known[number]
            found = shard_embeddings(sources.images.shard(number), texts, keep)
            writer.write(_pictures(pairs, captioned, texts, found))
            with _named(sources, number):
                _append(pictures, found.pictures)
                _append(captions, found.texts)
            advance(pairs.table.num_rows)
        writer.close()
        embed_dim = sources.shape[1]
        files = {PICTURES: writer.entry(PICTURES)}
        table.publish(PICTURES)
        files[PICTURE_VECTORS] = _published(pictures, PICTURE_VECTORS, embed_dim)
        if sources.texts:
            files[CAPTION_VECTORS] = _published(captions, CAPTION_VECTORS, embed_dim)
    work.publish_json(_GATHERED, {name: entry.to_json() for name, entry in files.items()})
    return files


def count_wanted(sources: Sources) -> tuple[int, int]:
    """Pictures of the split that are not taken down, and those of them that are known.

    Raises:
        DatasetError: a shard is damaged.
    """
    numbers = tuple(sources.pairs.records)
    known = sources.known_rows(numbers)
    num_wanted = num_known = 0
    for number in numbers:
        wanted = _wanted(sources.pairs.shard(number, columns=["uid", "split"]), sources.split)
        num_wanted += int(wanted.sum())
        num_known += int((wanted & known[number]).sum())
    return num_wanted, num_known


def read_vectors(folder: Folder, entry: FileEntry, per_item: int, embed_dim: int) -> np.ndarray:
    """Vectors of a file, memory-mapped where it is local.

    Returns:
        float32[N, A, E]

    Raises:
        DatasetError: it is not what its entry says.
    """
    shape = (entry.rows // per_item, per_item, embed_dim)
    if entry.rows % per_item or entry.bytes != 4 * embed_dim * entry.rows:
        raise DatasetError(
            f"{folder}/{entry.file}: {entry.bytes} bytes are not {entry.rows} vectors of "
            f"{embed_dim} values, {per_item} an item"
        )
    if not entry.rows:
        return np.zeros(shape, np.float32)
    path = f"{folder.path}/{entry.file}"
    try:
        if folder.is_local:
            return np.asarray(np.memmap(path, np.float32, "r", shape=shape))
        return np.frombuffer(folder.read(entry.file), np.float32).reshape(shape)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{folder}/{entry.file}: cannot be read: {error}") from error


def _gathered_before(home: Folder, work: Folder) -> Mapping[str, FileEntry] | None:
    value = work.read_json(_GATHERED)
    if value is None:
        return None
    files = {name: FileEntry.from_json(entry) for name, entry in value.items()}
    return files if all(home.size(e.file) == e.bytes for e in files.values()) else None


def _append(file: TemporaryFile, vectors: np.ndarray) -> None:
    """Write float32[..., E]; raises ValueError where one is longer than 1."""
    check_lengths(vectors)
    file.stream.write(np.ascontiguousarray(vectors, "<f4").reshape(-1).view(np.uint8))


def _published(file: TemporaryFile, name: str, embed_dim: int) -> FileEntry:
    """The whole file, under its name; `rows` counts vectors."""
    file.publish(name)
    return FileEntry(name, file.stream.bytes // (4 * embed_dim), file.stream.bytes, file.digest)


@contextlib.contextmanager
def _named(sources: Sources, number: int) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise DatasetError(f"{sources.images.folder}: shard {number:05d}: {error}") from error


def _wanted(pairs: Shard, split: str) -> np.ndarray:
    """bool[rows]: not taken down, and in the split."""
    live = pairs.live.to_numpy()
    return live if split == "all" else live & (pairs.table.column("split").to_numpy() == split)


def _pictures(pairs: Shard, captioned: Shard, texts: Shard | None, found: Embeddings) -> pa.Table:
    """The rows of pictures.arrow for one shard (PICTURES_SCHEMA)."""
    rows = pa.array(found.rows)
    table = pairs.table.select(["uid", "url"]).take(rows)
    kept = embedded_texts(
        captioned.table.select(["uid", "captions"]).take(rows),
        None if texts is None else texts.table.select(["texts_digest"]).take(rows),
        "; --captions names a dataset `captions` that they are of",
    )
    return pa.table(
        {
            "uid": table.column("uid"),
            "url": table.column("url"),
            "captions": kept,
            "shard": np.full(len(found.rows), pairs.record.number),
            "shard_row": found.rows,
        },
        schema=PICTURES_SCHEMA,
    )
