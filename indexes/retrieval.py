"""An index opened for search: vectors in, pictures and captions as they are to be shown out."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from indexes.approximate import ApproximateIndex
from indexes.faiss_files import read_proposer
from indexes.gathering import (
    CAPTION_VECTORS,
    PICTURE_VECTORS,
    PICTURES,
    PICTURES_SCHEMA,
    read_vectors,
)
from indexes.hits import Hits, Searcher
from indexes.maxsim import MaxSimIndex
from indexes.sharded import as_one
from indexes.storage import (
    CAPTION_INDEX,
    INDEX,
    PICTURE_INDEX,
    IndexManifest,
    IndexShard,
    Searched,
    read_manifest,
)
from pipeline.dataset import DRAFT, check_bytes, read_table
from pipeline.errors import ConfigError, DatasetError
from pipeline.shard import FileEntry
from pipeline.storage import Folder
from pipeline.tombstones import live_mask, read_tombstones


@dataclass(frozen=True)
class FoundPicture:
    """A picture that a search found."""

    score: float
    """Cosine of the closest two vectors."""
    uid: bytes
    url: str
    captions: list[str]
    """Those in use."""
    shard: int
    row: int
    """Within the shard."""


@dataclass(frozen=True)
class FoundCaption:
    """A caption that a search found."""

    score: float
    text: str
    uid: bytes
    """Of its picture."""


@dataclass(frozen=True)
class RetrievalIndex:
    """A published index. Its tombstones are applied to every search."""

    folder: Folder
    manifest: IndexManifest
    pictures: pa.Table
    """PICTURES_SCHEMA"""
    picture_vectors: Searcher
    """Its items are rows."""
    caption_vectors: Searcher | None
    """Its items are the captions of `pictures`, counted through."""
    tombstones: frozenset[bytes]

    @staticmethod
    def open(location: str | Folder, *, verify: bool = False) -> "RetrievalIndex":
        """Open an index.

        Args:
            location: path or URI of its folder.
            verify: read every byte first and compare digests.

        Raises:
            ConfigError: there is none, or it is not finished.
            DatasetError: a file is missing or damaged; it is named.
        """
        folder = location if isinstance(location, Folder) else Folder.at(location)
        manifest = read_manifest(folder)
        if manifest is None:
            raise ConfigError(_why_no_index(folder))
        for shard in manifest.shards:
            _check_files(folder, shard, verify=verify)
        pictures: list[pa.Table] = []
        searchers: list[Searcher] = []
        of_captions: list[Searcher] = []
        first = 0
        for shard in manifest.shards:
            table = read_table(folder, shard.files[PICTURES].file)
            _check_table(folder, shard, table)
            opened = _Opened(folder, shard, manifest.embed_dim)
            rows = table.column("row").to_numpy()
            pictures.append(table)
            searchers.append(opened.pictures(rows, manifest.num_queries))
            if shard.captions is not None:
                count = pc.sum(pc.list_value_length(table.column("captions"))).as_py() or 0
                of_captions.append(opened.captions(first + np.arange(count), shard.captions))
                first += count
        return RetrievalIndex(
            folder,
            manifest,
            pa.concat_tables(pictures),
            as_one(searchers),
            as_one(of_captions) if of_captions else None,
            read_tombstones(folder),
        )

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def summary(self) -> str:
        """One line for people."""
        captions = len(self.caption_vectors) if self.caption_vectors is not None else 0
        return (
            f"index of {self.pictures.num_rows:,} pictures with {self.manifest.num_queries} "
            f"vectors each ({_told([shard.pictures for shard in self.manifest.shards])}) and "
            f"{captions:,} captions, digest {self.digest[:16]}"
        )

    def check_checkpoint(self, digest: str, location: str) -> None:
        """Raise ConfigError, naming both, unless the checkpoint at `location` made this index."""
        if digest != self.manifest.checkpoint:
            raise ConfigError(
                f"{self.folder} was made with checkpoint {self.manifest.checkpoint[:16]}, "
                f"not with {location} ({digest[:16]})"
            )

    def search_texts(self, vectors: np.ndarray, k: int) -> list[list[FoundPicture]]:
        """The k pictures closest to each text.

        Args:
            vectors: float32[n, E], L2-normalised.
            k: at least 1.
        """
        return self._pictures(self.picture_vectors.search(vectors[:, None], k, without=self._down))

    def search_pictures(self, vectors: np.ndarray, k: int) -> list[list[FoundPicture]]:
        """The k pictures closest to each picture, by the closest two of their vectors.

        Args:
            vectors: float32[n, Q, E], L2-normalised.
            k: at least 1.
        """
        return self._pictures(self.picture_vectors.search(vectors, k, without=self._down))

    def search_captions(self, vectors: np.ndarray, k: int) -> list[list[FoundCaption]]:
        """The k captions closest to each picture.

        Args:
            vectors: float32[n, Q, E], L2-normalised.
            k: at least 1.

        Raises:
            ConfigError: no captions are indexed here.
        """
        if self.caption_vectors is None:
            raise ConfigError(f"{self.folder}: holds no captions; index text_embeddings too")
        found = []
        for hits in self.caption_vectors.search(vectors, k, without=self._down_captions):
            texts = self._texts.take(pa.array(hits.items)).to_pylist()
            owners = pa.array(self._owners[hits.items])
            uids = self.pictures.column("uid").take(owners).to_pylist()
            found.append(list(map(FoundCaption, hits.scores.tolist(), texts, uids)))
        return found

    def _pictures(self, found: list[Hits]) -> list[list[FoundPicture]]:
        results = []
        for hits in found:
            places = pa.array(np.searchsorted(self._rows, hits.items))
            rows = self.pictures.take(places).to_pylist()
            results.append(
                [
                    FoundPicture(
                        score,
                        row["uid"],
                        row["url"],
                        row["captions"],
                        row["shard"],
                        row["shard_row"],
                    )
                    for score, row in zip(hits.scores.tolist(), rows, strict=True)
                ]
            )
        return results

    @cached_property
    def _rows(self) -> np.ndarray:
        """int64[N]: the row of each picture, which is its item in FAISS."""
        return self.pictures.column("row").to_numpy()

    @cached_property
    def _texts(self) -> pa.Array:
        """string[M]: all captions; a caption's place is its item in FAISS."""
        return pc.list_flatten(self.pictures.column("captions").combine_chunks())

    @cached_property
    def _owners(self) -> np.ndarray:
        """int64[M]: for each caption the place of its picture in `pictures`."""
        return pc.list_parent_indices(self.pictures.column("captions").combine_chunks()).to_numpy()

    @cached_property
    def _down_positions(self) -> np.ndarray:
        """Places in `pictures` of those taken down."""
        return np.flatnonzero(~live_mask(self.pictures.column("uid"), self.tombstones).to_numpy())

    @cached_property
    def _down_captions(self) -> np.ndarray:
        """Those of pictures taken down."""
        return np.flatnonzero(np.isin(self._owners, self._down_positions))

    @cached_property
    def _down(self) -> np.ndarray:
        return self._rows[self._down_positions]


@dataclass(frozen=True)
class _Opened:
    """The vectors of an index shard, opened for search."""

    folder: Folder
    shard: IndexShard
    embed_dim: int

    def pictures(self, rows: np.ndarray, num_queries: int) -> Searcher:
        exact = self._exact(PICTURE_VECTORS, rows, num_queries)
        return self._searcher(PICTURE_INDEX, exact, self.shard.pictures)

    def captions(self, numbers: np.ndarray, searched: Searched) -> Searcher:
        exact = self._exact(CAPTION_VECTORS, numbers, 1)
        return self._searcher(CAPTION_INDEX, exact, searched)

    def _exact(self, name: str, items: np.ndarray, per_item: int) -> MaxSimIndex:
        vectors = read_vectors(self.folder, self._entry(name), per_item, self.embed_dim)
        try:
            return MaxSimIndex(items, vectors)
        except ValueError as error:
            raise self._unfit(name, error) from error

    def _searcher(self, name: str, exact: MaxSimIndex, searched: Searched) -> Searcher:
        if searched.width is None:
            return exact
        entry = self._entry(name)
        proposer = read_proposer(self.folder, entry.file, searched.kind)
        try:
            if len(proposer) != entry.rows:
                raise ValueError(f"{len(proposer)} vectors, not {entry.rows}")
            return ApproximateIndex(exact, proposer, searched.vectors_per_item, searched.width)
        except ValueError as error:
            raise self._unfit(name, error) from error

    def _entry(self, name: str) -> FileEntry:
        entry = self.shard.files.get(name)
        if entry is None:
            raise DatasetError(f"{self.folder}/{INDEX}: shard {self.shard.number} has no {name}")
        return entry

    def _unfit(self, name: str, error: Exception) -> DatasetError:
        file = self._entry(name).file
        return DatasetError(f"{self.folder}/{file}: does not fit the others: {error}")


def indexed_uids(folder: Folder) -> frozenset[bytes]:
    """The uids of all pictures in an index, those taken down too.

    Raises:
        ConfigError: there is no index.
        DatasetError: it is damaged.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise ConfigError(_why_no_index(folder))
    tables = (read_table(folder, shard.files[PICTURES].file) for shard in manifest.shards)
    return frozenset(uid for table in tables for uid in table.column("uid").to_pylist())


def _check_files(folder: Folder, shard: IndexShard, *, verify: bool) -> None:
    for entry in shard.files.values():
        size = folder.size(entry.file)
        if size != entry.bytes:
            found = "is missing" if size is None else f"has {size} bytes, not {entry.bytes}"
            raise DatasetError(f"{folder}/{entry.file}: {found}; remove the index, make it anew")
        if verify:
            check_bytes(folder, entry.file, entry.bytes, entry.digest)


def _check_table(folder: Folder, shard: IndexShard, table: pa.Table) -> None:
    entry = shard.files[PICTURES]
    if not table.schema.equals(PICTURES_SCHEMA) or table.num_rows != entry.rows:
        raise DatasetError(f"{folder}/{entry.file}: is not what {INDEX} says")


def _told(searched: Sequence[Searched]) -> str:
    """How shards are searched, for people: the kinds, and the lowest recall that was measured."""
    kinds = ", ".join(sorted({one.kind for one in searched}))
    recalls = [one.recall for one in searched if one.recall is not None]
    return f"{kinds}, recall {min(recalls):.3f}" if recalls else kinds


def _why_no_index(folder: Folder) -> str:
    if not folder.exists():
        return f"{folder}: no such folder"
    if folder.size(DRAFT) is not None:
        return f"{folder}: not finished; run its job again"
    return f"{folder}: no index (it has no {INDEX})"
