"""A small family of pairs and embeddings, without any model."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from indexes.sources import Sources
from pipeline.accounting import Account
from pipeline.dataset import Dataset
from pipeline.draft import Draft
from pipeline.embeddings import image_rows, text_rows
from pipeline.lineage import Lineage
from pipeline.schemas import PAIRS
from pipeline.shard import commit_table
from pipeline.storage import Folder

SHARD_ROWS = (5, 7, 4)
CHECKPOINT = "c" * 64
SPLITS = ("train", "test", "train", "validation")


@dataclass(frozen=True)
class Family:
    """Sixteen pictures in three shards; row 9 was taken down before they were embedded."""

    home: Path
    rows: list[dict]
    """Of pairs."""
    pictures: np.ndarray
    """float32[16, Q, E], with nonsense for row 9."""
    texts: list[np.ndarray]
    """float32[number of kept captions, E] of each row."""

    def dataset(self, kind: str) -> Dataset:
        return Dataset.open(str(self.home / kind))

    def sources(self, *, split: str = "all", with_texts: bool = True) -> Sources:
        texts = self.dataset("text_embeddings") if with_texts else None
        return Sources(self.dataset("pairs"), self.dataset("image_embeddings"), texts, split)


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def pair(row: int, word: str, first: int = 0) -> dict:
    """Row r has r % 4 captions in use, and one rejected before them."""
    texts = [("", "rejected:empty"), *((f"{word} {i} of {row}", "kept") for i in range(row % 4))]
    return {
        "uid": (first + row).to_bytes(16, "big"),
        "url": f"http://example.org/{first + row}.jpg",
        "picture": f"jpeg {row}".encode(),
        "captions": [{"text": text, "source": "web", "status": status} for text, status in texts],
        "split": SPLITS[row % 4],
    }


def publish(home: Path, kind: str, tables: list[pa.Table], lineage: Lineage) -> Dataset:
    draft = Draft.begin(Folder.at(home / kind), kind, tables[0].schema, lineage)
    for number, table in enumerate(tables):
        everything = Account.all_kept(table.num_rows)
        captions = everything if kind == "pairs" else None
        rows = draft.rows_per_batch
        commit_table(draft.folder, number, table, rows, pictures=everything, captions=captions)
    return draft.publish(draft.committed().values())


@pytest.fixture(scope="session")
def make_family():
    """Makes the datasets below a folder."""

    def make(
        home: Path,
        *,
        seed: int = 0,
        word: str = "caption",
        checkpoint: str = CHECKPOINT,
        text_checkpoint: str = "",
        first: int = 0,
        per_picture: int = 3,
    ) -> Family:
        """`first` is the number of the first picture, which its uid is."""
        rows = [pair(row, word, first) for row in range(sum(SHARD_ROWS))]
        pictures = unit(len(rows), per_picture, 8, seed=seed)
        texts = [unit(row % 4, 8, seed=1000 + 100 * seed + row) for row in range(len(rows))]
        tables: dict[str, list[pa.Table]] = {
            "pairs": [],
            "image_embeddings": [],
            "text_embeddings": [],
        }
        ends = np.cumsum(SHARD_ROWS).tolist()
        for first, end in zip([0, *ends], ends, strict=False):
            here = [row for row in range(first, end) if row != 9]
            uids = [pair["uid"] for pair in rows[first:end]]
            captions = [None if r == 9 else rows[r]["captions"] for r in range(first, end)]
            tables["pairs"].append(pa.Table.from_pylist(rows[first:end], PAIRS))
            present = [captions is not None for captions in captions]
            tables["image_embeddings"].append(image_rows(uids, pictures[here], present))
            vectors = np.concatenate([texts[row] for row in here])
            tables["text_embeddings"].append(text_rows(uids, captions, vectors))
        publish(home, "pairs", tables["pairs"], Lineage("test", {"seed": seed, "first": first}))
        for kind, digest in (
            ("image_embeddings", checkpoint),
            ("text_embeddings", text_checkpoint or checkpoint),
        ):
            frozen = {"checkpoint": {"digest": digest, "stage": 1}}
            publish(home, kind, tables[kind], Lineage("embed", {}, (), frozen))
        return Family(home, rows, pictures, texts)

    return make


@pytest.fixture(scope="session")
def shared_family(tmp_path_factory, make_family) -> Family:
    """For tests that change nothing."""
    return make_family(tmp_path_factory.mktemp("family"))


@pytest.fixture
def family(tmp_path, make_family) -> Family:
    """For tests that change it."""
    return make_family(tmp_path / "family")
