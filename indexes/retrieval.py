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
from indexes.parts import Part, read_parts
from indexes.sharded import as_one
from indexes.storage import (
    CAPTION_INDEX,
    INDEX,
    PICTURE_INDEX,
    IndexManifest,
    IndexShard,
    Searched,
)
from pipeline.dataset import check_bytes, read_table
from pipeline.errors import ConfigError, DatasetError
from pipeline.shard import FileEntry
from pipeline.storage import Folder
from pipeline.tombstones import FILE as TOMBSTONES
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
    part: int = 0
    """Of the index, whose `pairs` these are: 0 is what it was made of at first."""


@dataclass(frozen=True)
class FoundCaption:
    """A caption that a search found."""

    score: float
    text: str
    uid: bytes
    """Of its picture."""


@dataclass(frozen=True)
class RetrievalIndex:
    """A published index with its additions. Its tombstones are applied to every search."""

    folder: Folder
    parts: tuple[Part, ...]
    """At least one."""
    pictures: pa.Table
    """PICTURES_SCHEMA, of all parts one after the other."""
    picture_vectors: Searcher
    """Its items are places in `pictures`."""
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
        parts = read_parts(folder)
        shards = [(part, shard) for part in parts for shard in part.manifest.shards]
        for part, shard in shards:
            _check_files(part.folder, shard, verify=verify)
        pictures: list[pa.Table] = []
        searchers: list[Searcher] = []
        of_captions: list[Searcher] = []
        first = first_caption = 0
        for part, shard in shards:
            table = read_table(part.folder, shard.files[PICTURES].file)
            _check_table(part.folder, shard, table)
            opened = _Opened(part.folder, shard, part.manifest.embed_dim)
            pictures.append(table)
            places = first + np.arange(len(table))
            searchers.append(opened.pictures(places, part.manifest.num_queries))
            first += len(table)
            count = pc.sum(pc.list_value_length(table.column("captions"))).as_py() or 0
            if shard.captions is not None:
                numbers = first_caption + np.arange(count)
                of_captions.append(opened.captions(numbers, shard.captions))
            first_caption += count
        return RetrievalIndex(
            folder,
            parts,
            pa.concat_tables(pictures),
            as_one(searchers),
            as_one(of_captions) if of_captions else None,
            read_tombstones(folder),
        )

    @property
    def manifest(self) -> IndexManifest:
        """What index.json says."""
        return self.parts[0].manifest

    @property
    def digest(self) -> str:
        """Covers the additions."""
        return self.manifest.digest

    @property
    def changing_files(self) -> list[tuple[Folder, str]]:
        """What additions and takedowns write anew, by folder and name; it may be absent."""
        return [(self.folder, INDEX), (self.folder, TOMBSTONES)]

    @property
    def has_additions(self) -> bool:
        return len(self.parts) > 1

    @property
    def summary(self) -> str:
        """One line for people."""
        captions = len(self.caption_vectors) if self.caption_vectors is not None else 0
        searched = [shard.pictures for part in self.parts for shard in part.manifest.shards]
        added = len(self.parts) - 1
        return (
            f"index of {self.pictures.num_rows:,} pictures with {self.manifest.num_queries} "
            f"vectors each ({_told(searched)}) and {captions:,} captions, "
            + (f"{added:,} addition{'s' * (added > 1)}, " if added else "")
            + f"digest {self.digest[:16]}"
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

    def pictures_at(self, places: np.ndarray, scores: np.ndarray) -> list[FoundPicture]:
        """Pictures as they are to be shown.

        Args:
            places: int64[n], in `pictures`.
            scores: float64[n], theirs.
        """
        parts = np.searchsorted(self._ends, places, "right").tolist()
        rows = self.pictures.take(pa.array(places, pa.int64())).to_pylist()
        return [
            FoundPicture(
                score, row["uid"], row["url"], row["captions"], row["shard"], row["shard_row"], part
            )
            for score, row, part in zip(scores.tolist(), rows, parts, strict=True)
        ]

    def first_of(self, part: int) -> FoundPicture:
        """The first picture of a part."""
        start = int(self._ends[part]) - self.parts[part].num_pictures
        (first,) = self.pictures_at(np.array([start]), np.ones(1))
        return first

    def _pictures(self, found: list[Hits]) -> list[list[FoundPicture]]:
        return [self.pictures_at(hits.items, hits.scores) for hits in found]

    @cached_property
    def _ends(self) -> np.ndarray:
        """int64[parts]: for each part the place behind its last picture."""
        return np.cumsum([part.num_pictures for part in self.parts])

    @cached_property
    def _texts(self) -> pa.Array:
        """string[M]: all captions; a caption's place is its item in FAISS."""
        return pc.list_flatten(self.pictures.column("captions").combine_chunks())

    @cached_property
    def _owners(self) -> np.ndarray:
        """int64[M]: for each caption the place of its picture in `pictures`."""
        return pc.list_parent_indices(self.pictures.column("captions").combine_chunks()).to_numpy()

    @cached_property
    def _down(self) -> np.ndarray:
        """Places in `pictures` of those taken down."""
        return np.flatnonzero(~live_mask(self.pictures.column("uid"), self.tombstones).to_numpy())

    @cached_property
    def _down_captions(self) -> np.ndarray:
        """Those of pictures taken down."""
        return np.flatnonzero(np.isin(self._owners, self._down))


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
