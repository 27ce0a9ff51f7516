"""An index of eleven pictures, whose checkpoint has random weights, and what is made of it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from jobs.cli import main
from model.checkpoint import Checkpoint, save_tensors, write_checkpoint
from model.pretrained.encoders import EncoderConfig, load_encoder
from model.qformer import QFormerConfig
from model.stage1 import Stage1
from model.vocabulary import learned_tokenizer
from pipeline.accounting import Account
from pipeline.captions import kept_texts
from pipeline.dataset import Dataset, decode_row
from pipeline.draft import Draft
from pipeline.embeddings import image_rows, text_rows
from pipeline.features import token_columns
from pipeline.lineage import Lineage
from pipeline.pictures import PictureConfig, store
from pipeline.schemas import PAIRS, features_schema
from pipeline.shard import commit_table
from pipeline.storage import Folder

SHARD_ROWS = (6, 5)
ENCODER = EncoderConfig(encoder="timm:vit_tiny_patch16_224", weights="random")
WORDS = ["a red boat", "two dogs run", "the old house by the sea", "a green bus", "a man"]


def uid(row: int) -> bytes:
    return row.to_bytes(16, "big")


def caption(text: str, status: str = "kept") -> dict[str, str]:
    return {"text": text, "source": "web", "status": status}


def make_pairs(home: Path, pictures: list[Path], *, seed: int = 0, first: int = 0) -> Dataset:
    """Row r has r % 3 captions; row 2's first was rejected. The first picture's uid is `first`."""
    rows = []
    for row, path in enumerate(pictures):
        texts = [caption(f"{WORDS[(row + i + seed) % 5]} {row}") for i in range(row % 3)]
        stored = store(path.read_bytes(), PictureConfig())
        rows.append(
            {
                "uid": uid(first + row),
                "url": f"http://example.org/{first + row}\x1b[31m.png",
                "picture": stored.jpeg,
                "captions": [caption("", "rejected:empty"), *texts] if row == 2 else texts,
                "split": ("train", "test")[row % 2],
            }
        )
    tables, first = [], 0
    for count in SHARD_ROWS:
        tables.append(pa.Table.from_pylist(rows[first : first + count], PAIRS))
        first += count
    return publish(home, "pairs", tables, Lineage("test", {"seed": seed}))


def publish(home: Path, kind: str, tables: list[pa.Table], lineage: Lineage) -> Dataset:
    draft = Draft.begin(Folder.at(home), kind, tables[0].schema, lineage)
    for number, table in enumerate(tables):
        everything = Account.all_kept(table.num_rows)
        captions = everything if kind == "pairs" else None
        rows = draft.rows_per_batch
        commit_table(draft.folder, number, table, rows, pictures=everything, captions=captions)
    return draft.publish(draft.committed().values())


def make_checkpoint(home: Path, spec, *, seed: int) -> tuple[Stage1, Checkpoint]:
    tokenizer = learned_tokenizer(WORDS, 80)
    config = QFormerConfig(
        vision_width=spec.width,
        vocab_size=len(tokenizer),
        width=24,
        num_layers=2,
        num_heads=2,
        feed_forward_width=48,
        num_queries=4,
        embed_dim=16,
        max_positions=24,
        max_text_tokens=20,
        dropout=0.0,
    )
    torch.manual_seed(seed)
    stage1 = Stage1(config, tokenizer).eval()
    for weights in stage1.parameters():  # far from the small ones it would start with
        torch.nn.init.normal_(weights, std=0.5)
    lineage = Lineage("test", {"seed": seed}, (), {"encoder": spec.to_json()})
    checkpoint = Checkpoint(Folder.at(home), 1, 0, asdict(config), lineage, {})
    contents = {"weights": save_tensors(stage1.state_dict()), "tokenizer": tokenizer.to_json()}
    contents["tokenizer"] = contents["tokenizer"].encode()
    return stage1, write_checkpoint(checkpoint, contents)


def embed(home: Path, pairs: Dataset, encoder, stage1: Stage1, checkpoint: Checkpoint) -> None:
    """Makes embeddings, and features beside them."""
    transform = encoder.transform()
    images, texts, features = [], [], []
    for shard in pairs.shards():
        uids = shard.table.column("uid").to_pylist()
        tokens = [encoder(transform(decode_row(shard, row))[None]) for row in range(len(uids))]
        columns = token_columns(torch.cat(tokens).numpy(), [True] * len(uids), uids, "fp16")
        schema = features_schema(*tokens[0].shape[1:], "fp16")
        features.append(pa.table({"uid": uids, **columns}, schema=schema))
        vectors = stage1.embed_pictures(torch.cat(tokens)).numpy()
        images.append(image_rows(uids, vectors, [True] * len(uids)))
        captions = shard.table.column("captions")
        kept = [text for row in kept_texts(captions) for _, text in row]
        texts.append(text_rows(uids, captions.to_pylist(), stage1.embed_texts(kept).numpy()))
    seen = Lineage("features", {}, (pairs.as_parent,), {"encoder": encoder.spec.to_json()})
    publish(home / "features", "features", features, seen)
    frozen = {"checkpoint": {"digest": checkpoint.digest, "stage": 1}}
    for kind, tables in (("image_embeddings", images), ("text_embeddings", texts)):
        publish(home / kind, kind, tables, Lineage("embed", {}, (), frozen))


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Eleven pictures in two shards, two checkpoints, and the embeddings of the first.

    Eight more in `pairs-2`, the first two of which are those of rows 9 and 10 again. Not to be
    changed.
    """
    home = tmp_path_factory.mktemp("made")
    paths = []
    for number in range(sum(SHARD_ROWS) + 6):
        pixels = np.random.default_rng(number).integers(0, 256, (4, 6, 3), dtype=np.uint8)
        paths.append(home / f"{number}.png")
        Image.fromarray(pixels).resize((300, 200), Image.Resampling.NEAREST).save(paths[-1])
    encoder = load_encoder(ENCODER)
    stage1, checkpoint = make_checkpoint(home / "stage1", encoder.spec, seed=0)
    make_checkpoint(home / "other", encoder.spec, seed=1)
    pairs = make_pairs(home / "pairs", paths[:11])
    embed(home / "embeddings", pairs, encoder, stage1, checkpoint)
    more = make_pairs(home / "pairs-2", paths[9:], first=9)
    embed(home / "embeddings-2", more, encoder, stage1, checkpoint)
    command = ["index", home / "embeddings", "--pairs", home / "pairs", "--out", home / "index"]
    run(*command, "--checkpoint", home / "stage1")
    add = ["index", home / "embeddings-2", "--pairs", home / "pairs-2", "--add-to"]
    return SimpleNamespace(
        home=home,
        paths=paths,
        stage1=stage1,
        checkpoint=checkpoint,
        command=command,
        add=add,
        make_pairs=make_pairs,
    )


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture
def searched(capsys) -> Callable[..., dict]:
    """What a search tells machines: `searched(index, *arguments)`."""

    def searched(*arguments: object) -> dict:
        capsys.readouterr()
        run("search", *arguments, "--json")
        return json.loads(capsys.readouterr().out)

    return searched


@pytest.fixture
def copy(made, tmp_path) -> Callable[..., Path]:
    """Copies folders of `made` into `tmp_path`, and returns that: `copy(*names)`."""

    def copy(*names: str) -> Path:
        for name in names:
            shutil.copytree(made.home / name, tmp_path / name)
        return tmp_path

    return copy
