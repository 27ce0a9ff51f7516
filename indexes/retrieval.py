"""An index opened for search: vectors in, pictures and captions as they are to be shown out."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from indexes.maxsim import Hits, MaxSimIndex
from indexes.storage import (
    CAPTION_VECTORS,
    INDEX,
    PICTURE_VECTORS,
    PICTURES,
    PICTURES_SCHEMA,
    IndexManifest,
    read_manifest,
    read_vectors,
)
from pipeline.dataset import DRAFT, check_bytes, read_table
from pipeline.errors import ConfigError, DatasetError
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
    picture_vectors: MaxSimIndex
    caption_vectors: MaxSimIndex | None
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
        for entry in manifest.files.values():
            size = folder.size(entry.file)
            if size != entry.bytes:
                found = "is missing" if size is None else f"has {size} bytes, not {entry.bytes}"
                raise DatasetError(
                    f"{folder}/{entry.file}: {found}; remove the index, make it anew"
                )
            if verify:
                check_bytes(folder, entry.file, entry.bytes, entry.digest)
        files = manifest.files
        captions = files.get(CAPTION_VECTORS)
        index = RetrievalIndex(
            folder,
            manifest,
            read_table(folder, files[PICTURES].file),
            read_vectors(folder, files[PICTURE_VECTORS], manifest.num_queries),
            None if captions is None else read_vectors(folder, captions, 1),
            read_tombstones(folder),
        )
        index._check()
        return index

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def summary(self) -> str:
        """One line for people."""
        captions = len(self.caption_vectors) if self.caption_vectors is not None else 0
        return (
            f"index of {self.pictures.num_rows:,} pictures with {self.manifest.num_queries} "
            f"vectors each and {captions:,} captions, digest {self.digest[:16]}"
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
        down = np.flatnonzero(np.isin(self._owners, self._down_positions))
        found = []
        for hits in self.caption_vectors.search(vectors, k, without=down):
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
    def _down(self) -> np.ndarray:
        return self._rows[self._down_positions]

    def _check(self) -> None:
        """Raises DatasetError where the files do not fit each other."""
        fits = (
            self.pictures.schema.equals(PICTURES_SCHEMA)
            and self.pictures.num_rows == self.manifest.files[PICTURES].rows
            and np.array_equal(self._rows, self.picture_vectors.items)
            and self.picture_vectors.embed_dim == self.manifest.embed_dim
        )
        if fits and self.caption_vectors is not None:
            fits = np.array_equal(self.caption_vectors.items, np.arange(len(self._texts)))
        if not fits:
            raise DatasetError(f"{self.folder}: its files do not fit each other")


def _why_no_index(folder: Folder) -> str:
    if not folder.exists():
        return f"{folder}: no such folder"
    if folder.size(DRAFT) is not None:
        return f"{folder}: not finished; run its job again"
    return f"{folder}: no index (it has no {INDEX})"
