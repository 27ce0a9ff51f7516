"""`viaduct index`: exact indexes of contrastive embeddings, for search."""

import os
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import tyro

from indexes.building import Sources, build, checkpoint_of
from indexes.retrieval import RetrievalIndex
from indexes.storage import begin
from jobs.build import running
from jobs.progress import Progress
from model.checkpoint import Checkpoint
from pipeline.dataset import Dataset
from pipeline.errors import ConfigError
from pipeline.shard import MANIFEST
from pipeline.storage import Folder
from pipeline.views import open_evaluation_view


@dataclass(frozen=True, kw_only=True)
class Index:
    """Index embeddings with FAISS; a picture is as close to a text as its closest query output."""

    embeddings: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="EMBEDDINGS")]
    """Folder that holds `image_embeddings` and, for searches of captions, `text_embeddings`; or a
    dataset of kind `image_embeddings` itself."""

    pairs: str
    """Dataset of kind `pairs` beside them; URLs and captions to show are taken from it."""

    captions: str | None = None
    """Dataset of kind `captions` beside them, if its captions were embedded; they are shown then.
    """

    out: str
    """Folder or URI of the index to make."""

    checkpoint: str | None = None
    """Training folder or checkpoint of stage 1 that made the embeddings; it is checked, and
    remembered for `viaduct search`."""

    features: str | None = None
    """Features that the pictures' embeddings were made of; remembered for re-ranking by `viaduct
    search` and `viaduct serve`."""

    split: Literal["all", "train", "validation", "test"] = "all"
    """Which pictures to index."""

    def run(self) -> RetrievalIndex:
        """Make the index, unless it is there."""
        images, texts = self._embeddings()
        pairs = Dataset.open(self.pairs, "pairs")
        chosen = None if self.captions is None else Dataset.open(self.captions, "captions")
        sources = Sources(pairs, images, texts, self.split, chosen)
        self._check_checkpoint(images)
        self._check_features(images)
        folder = Folder.at(self.out)
        draft = begin(folder, sources.lineage)
        if draft is not None:
            progress = Progress("index", images.num_rows, 0, "pictures")
            with running(self._from_anywhere(), draft) as log, log.phase("index"):
                try:
                    build(folder, sources, progress.advance)
                finally:
                    progress.close()
        return RetrievalIndex.open(folder)

    def _embeddings(self) -> tuple[Dataset, Dataset | None]:
        folder = Folder.at(self.embeddings)
        if folder.size(MANIFEST) is not None:
            return Dataset.open(folder, "image_embeddings"), None
        if not (folder / "image_embeddings").exists():
            raise ConfigError(f"{folder}: holds no image_embeddings; `viaduct embed` makes them")
        images = Dataset.open(folder / "image_embeddings", "image_embeddings")
        texts = folder / "text_embeddings"
        return images, Dataset.open(texts, "text_embeddings") if texts.exists() else None

    def _check_checkpoint(self, images: Dataset) -> None:
        if self.checkpoint is None:
            return
        given, made = Checkpoint.open(self.checkpoint).digest, checkpoint_of(images)["digest"]
        if given != made:
            raise ConfigError(
                f"{images.folder} was made with checkpoint {made[:16]}, "
                f"not with {self.checkpoint} ({given[:16]})"
            )

    def _check_features(self, images: Dataset) -> None:
        if self.features is None:
            return
        features = open_evaluation_view(self.features)
        if features.digest not in {parent.digest for parent in images.manifest.lineage.parents}:
            raise ConfigError(
                f"{images.folder} was not made of {features.folder} ({features.digest[:16]})"
            )

    def _from_anywhere(self) -> "Index":
        """With absolute paths, for a search that is called from another folder."""
        return replace(
            self,
            embeddings=_absolute(self.embeddings),
            pairs=_absolute(self.pairs),
            captions=None if self.captions is None else _absolute(self.captions),
            out=_absolute(self.out),
            checkpoint=None if self.checkpoint is None else _absolute(self.checkpoint),
            features=None if self.features is None else _absolute(self.features),
        )


def _absolute(location: str) -> str:
    return location if "://" in location else os.path.abspath(os.path.expanduser(location))
