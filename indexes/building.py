"""Building an index from embeddings, and from the pairs they lie beside."""

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.fs as pafs

from indexes.approximate import ApproximateIndex
from indexes.faiss_files import write_proposer
from indexes.filling import filled
from indexes.gathering import (
    CAPTION_VECTORS,
    PICTURE_VECTORS,
    gather,
    read_vectors,
)
from indexes.kinds import chosen
from indexes.maxsim import MaxSimIndex
from indexes.proposer import Width
from indexes.sources import Sources
from indexes.storage import (
    CAPTION_INDEX,
    PICTURE_INDEX,
    IndexManifest,
    IndexShard,
    Searched,
    commit_shard,
    committed_shard,
    publish,
)
from indexes.tuning import tuned
from pipeline.errors import ConfigError
from pipeline.shard import FileEntry
from pipeline.storage import Folder

logger = logging.getLogger(__name__)

_QUERIES = 800
"""Held out, half of them to tune on and half to measure on; of whole pictures fewer are enough."""
_PICTURE_QUERIES = 100
_WORK = ".work"


def build(folder: Folder, sources: Sources, advance: Callable[[int], None]) -> None:
    """Make the index in `folder`, shard after shard, and publish it.

    Args:
        folder: of the index; `storage.begin` has begun it.
        sources: see there.
        advance: is told the number of rows as they are read.

    Raises:
        ConfigError: there is no picture to index, or the captions are not those that were embedded.
        DatasetError: a shard is damaged.
    """
    for number, together in enumerate(sources.index_shards()):
        build_shard(folder, sources, number, together, advance)
    publish_made(folder, sources)


def publish_made(folder: Folder, sources: Sources) -> None:
    """Publish an index of all shards that are made; raises ConfigError where they are empty."""
    made = (committed_shard(folder, number) for number, _ in enumerate(sources.index_shards()))
    shards = tuple(shard for shard in made if shard is not None)
    if not any(shard.num_pictures for shard in shards):
        raise ConfigError(f"{sources.images.folder}: no picture of split {sources.split!r}")
    publish(folder, IndexManifest(sources.lineage, *sources.shape, shards))


def build_shard(
    folder: Folder,
    sources: Sources,
    number: int,
    together: Sequence[int],
    advance: Callable[[int], None],
) -> IndexShard:
    """Make one index shard, or go on with it; what is made already stays.

    Args:
        folder: of the index.
        sources: see there.
        number: of the index shard.
        together: the shards of the datasets that are in it.
        advance: is told the number of rows as they are read.

    Raises:
        ConfigError, DatasetError: as `build`.
    """
    there = committed_shard(folder, number)
    if there is not None:
        advance(sum(sources.images.records[n].entry.rows for n in together))
        return there
    with _workshop(folder, f"{number:05d}") as home:
        work = home / _WORK
        work.create()
        home.sweep(_WORK)
        files = dict(gather(home, work, sources, together, advance))
        num_queries, embed_dim = sources.shape
        pictures = _opened(home, files[PICTURE_VECTORS], num_queries, embed_dim)
        captions = None
        if CAPTION_VECTORS in files:
            captions = _opened(home, files[CAPTION_VECTORS], 1, embed_dim)
        side = _Side(home, work, sources, PICTURE_INDEX)
        some = captions if captions is not None and len(captions) > 1 else pictures
        of_pictures = side.indexed(pictures, some, files)
        of_captions = None
        if captions is not None:
            side = replace(side, name=CAPTION_INDEX)
            of_captions = side.indexed(captions, pictures, files)
        work.remove()
        shard = IndexShard(number, _placed(folder, home, files), of_pictures, of_captions)
    commit_shard(folder, shard)
    return shard


@dataclass(frozen=True)
class _Side:
    """The pictures or the captions of an index shard."""

    home: Folder
    work: Folder
    sources: Sources
    name: str
    """Of its FAISS file."""

    def indexed(
        self, exact: MaxSimIndex, asking: MaxSimIndex, files: dict[str, FileEntry]
    ) -> Searched:
        """Index them, unless all are to be compared; the file is added to `files`.

        Args:
            exact: the vectors.
            asking: what queries are drawn from: captions for pictures, pictures for captions.
            files: of the index shard.
        """
        config = self.sources.config
        per_item = exact.vectors_per_item
        if self.name == PICTURE_INDEX and config.vectors_per_picture is not None:
            per_item = min(per_item, config.vectors_per_picture)
        kind = chosen(config, len(exact) * per_item, exact.embed_dim)
        if kind == "exact" or not len(exact):
            return Searched.exactly(exact.vectors_per_item)
        stem = self.name.removesuffix(".faiss")
        proposer = filled(self.work, stem, exact.vectors, per_item, kind, config.seed)
        files[self.name] = write_proposer(self.home, self.name, proposer)
        index = ApproximateIndex(exact, proposer, per_item, Width(1, 1))
        index, found = tuned(index, _drawn(asking, config.seed), config.target_recall)
        logger.info("tuned index=%s kind=%s %s recall=%.4f", stem, kind, index.width, found.recall)
        return Searched(kind, per_item, index.width, found.recall, found.num_queries)


def _drawn(asking: MaxSimIndex, seed: int) -> np.ndarray:
    """float32[n, A, E]: some items as queries, in random order; never fewer than two."""
    most = _QUERIES if asking.vectors_per_item == 1 else _PICTURE_QUERIES
    numbers = np.random.default_rng(seed).permutation(len(asking))[:most]
    return asking.vectors[np.resize(numbers, max(2, len(numbers)))]


def _opened(home: Folder, entry: FileEntry, per_item: int, embed_dim: int) -> MaxSimIndex:
    vectors = read_vectors(home, entry, per_item, embed_dim)
    return MaxSimIndex(np.arange(len(vectors)), vectors)


@contextlib.contextmanager
def _workshop(folder: Folder, name: str) -> Iterator[Folder]:
    """A local folder in which a shard is made: its own where the index is local."""
    if folder.is_local:
        yield folder / name
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield Folder.at(scratch) / name


def _placed(folder: Folder, home: Folder, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
    """The files with their names in the index; copied there, where it is not local.

    On an object store the digest is in a name, so that no attempt overwrites another's.
    """
    placed = {}
    for name, entry in files.items():
        file = f"{home.name}/{name}"
        if not folder.is_local:
            stem, _, suffix = name.partition(".")
            file = f"{home.name}/{stem}-{entry.digest[:16]}.{suffix}"
            pafs.copy_files(
                f"{home.path}/{name}", f"{folder.path}/{file}", destination_filesystem=folder.fs
            )
        placed[name] = replace(entry, file=file)
    return placed
