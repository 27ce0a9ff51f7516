"""Index and search as a user runs them, on a small checkpoint with random weights."""

import asyncio
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from PIL import Image

from indexes import building
from indexes.exact import on_grid
from indexes.retrieval import RetrievalIndex
from indexes.storage import begin
from jobs import index as index_job
from jobs.cli import main
from jobs.search_models import CheckpointEmbedder
from jobs.search_places import PlacesConfig
from jobs.serve.replicas import Asked, Replica, ReplicaWork
from jobs.serve.running import open_catalogue
from model.checkpoint import Checkpoint, save_tensors, write_checkpoint
from model.pretrained.encoders import EncoderConfig, load_encoder
from model.qformer import QFormerConfig
from model.stage1 import Stage1
from model.vocabulary import learned_tokenizer
from pipeline.accounting import Account
from pipeline.captions import kept_texts
from pipeline.claim import claimed
from pipeline.dataset import Dataset, decode_row
from pipeline.draft import Draft
from pipeline.embeddings import image_rows, text_rows
from pipeline.features import token_columns
from pipeline.lineage import Lineage
from pipeline.pictures import PictureConfig, store
from pipeline.schemas import PAIRS, features_schema
from pipeline.shard import commit_table
from pipeline.storage import Folder
from pipeline.tombstones import add_tombstones

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


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Eleven pictures in two shards, two checkpoints, and the embeddings of the first.

    Eight more in `pairs-2`, the first two of which are those of rows 9 and 10 again.
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
        home=home, paths=paths, stage1=stage1, checkpoint=checkpoint, command=command, add=add
    )


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def refused(capsys, *arguments: object) -> str:
    """What a command says that ends with exit code 2: one line."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    lines = [line for line in said.err.splitlines() if line.startswith("viaduct ")]
    assert len(lines) == 1
    assert said.err.rstrip().endswith(lines[0])
    return lines[0]


def searched(capsys, *arguments: object) -> dict:
    capsys.readouterr()
    run("search", *arguments, "--json")
    return json.loads(capsys.readouterr().out)


def copy(made, tmp_path: Path, *names: str) -> Path:
    for name in names:
        shutil.copytree(made.home / name, tmp_path / name)
    return tmp_path


# Index


def test_the_same_command_again_changes_nothing(made, capsys):
    before = (made.home / "index" / "index.json").read_bytes()
    capsys.readouterr()
    run(*made.command, "--checkpoint", made.home / "stage1")
    assert (made.home / "index" / "index.json").read_bytes() == before
    assert (
        "index of 11 pictures with 4 vectors each (exact) and 10 captions"
        in capsys.readouterr().out
    )


def test_the_run_is_kept_beside_the_index_with_places_that_hold_anywhere(
    made, tmp_path, monkeypatch
):
    monkeypatch.chdir(made.home)
    run(
        "index", "embeddings", "--pairs", "pairs", "--out", tmp_path / "i", "--checkpoint", "stage1"
    )
    config = yaml.safe_load((tmp_path / "i" / "config.yaml").read_text())
    assert config["pairs"] == str(made.home / "pairs")
    assert config["checkpoint"] == str(made.home / "stage1")
    (logged,) = json.loads((tmp_path / "i" / "run.json").read_text())["runs"]
    assert logged["ended"]
    assert [phase["phase"] for phase in logged["phases"]] == ["index"]
    run("index", "--config", tmp_path / "i" / "config.yaml", "--out", tmp_path / "again")
    digests = [
        json.loads((folder / "index.json").read_text())["digest"]
        for folder in (tmp_path / "i", tmp_path / "again", made.home / "index")
    ]
    assert len(set(digests)) == 1


def test_a_build_that_was_killed_goes_on_with_the_same_command(made, tmp_path, monkeypatch, capsys):
    command = [*made.command[:-1], tmp_path / "index"]

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(building, "publish", killed)
        assert main([str(word) for word in command]) == 130
    said = refused(capsys, "search", tmp_path / "index", "a red boat")
    assert said.endswith("index: not finished; run its job again")
    run(*command)
    one, other = (tmp_path / "index" / "index.json", made.home / "index" / "index.json")
    assert one.read_bytes() == other.read_bytes()


def test_a_second_job_in_the_same_folder_is_refused(made, tmp_path, capsys):
    folder = Folder.at(tmp_path / "index")
    with claimed(folder, "viaduct x"):
        said = refused(capsys, *made.command[:-1], tmp_path / "index")
    assert "another job is writing here (viaduct x, process" in said


def test_an_index_of_pictures_alone(made, tmp_path, capsys):
    images = made.home / "embeddings" / "image_embeddings"
    run("index", images, "--pairs", made.home / "pairs", "--out", tmp_path / "index")
    assert "and 0 captions" in capsys.readouterr().out
    found = searched(capsys, tmp_path / "index", "a red boat", "--checkpoint", made.home / "stage1")
    assert len(found["searches"][0]["results"]) == 10
    said = refused(capsys, "search", tmp_path / "index", "a red boat")
    assert "remembers no checkpoint; name it with --checkpoint" in said


@pytest.mark.parametrize("kind", ["hnsw", "ivf", "ivfpq"])
def test_other_kinds_are_asked_for_by_name(made, tmp_path, capsys, kind):
    exact = searched(capsys, made.home / "index", "a red boat", "--k", 3)
    options = ("--kind", kind, "--vectors-per-picture", 2, "--checkpoint", made.home / "stage1")
    run(*made.command[:-1], tmp_path / "index", *options)
    assert f"11 pictures with 4 vectors each ({kind}, recall 1.000)" in capsys.readouterr().out
    found = searched(capsys, tmp_path / "index", "a red boat", "--k", 3)
    assert found["searches"] == exact["searches"]
    said = refused(capsys, *made.command[:-1], tmp_path / "index", *options, "--kind", "exact")
    assert f'config.kind: "{kind}" there, "exact" now' in said
    assert "target_recall: 2.0 is not" in refused(capsys, *made.command, "--target-recall", 2)
    assert "threads: 0 is not positive" in refused(capsys, *made.command, "--threads", 0)


def test_several_index_shards_are_built_by_ray(made, tmp_path, capsys, ray_session):
    exact = searched(capsys, made.home / "index", "a red boat", "--image", made.paths[7])
    options = ("--shard-pictures", 6, "--kind", "ivf", "--checkpoint", made.home / "stage1")
    run(*made.command[:-1], tmp_path / "index", *options)
    assert (tmp_path / "index" / "00001" / "picture_index.faiss").exists()
    found = searched(capsys, tmp_path / "index", "a red boat", "--image", made.paths[7])
    assert found["searches"] == exact["searches"]
    # Killed when the first was made, it makes the second.
    index = RetrievalIndex.open(str(tmp_path / "index"))
    begin(Folder.at(tmp_path / "again"), index.manifest.lineage)
    shutil.copytree(tmp_path / "index" / "00000", tmp_path / "again" / "00000")
    shutil.copy(tmp_path / "index" / "00000.json", tmp_path / "again")
    run(*made.command[:-1], tmp_path / "again", *options)
    assert (tmp_path / "again" / "index.json").read_bytes() == (
        tmp_path / "index" / "index.json"
    ).read_bytes()


def test_what_index_cannot_use_is_one_line(made, tmp_path, capsys):
    def said(*changes: object) -> str:
        return refused(capsys, *made.command[:4], "--out", tmp_path / "index", *changes)

    other = said("--checkpoint", made.home / "other")
    assert f"was made with checkpoint {made.checkpoint.digest[:16]}, not with" in other
    assert str(made.home / "other") in other
    assert "nowhere: no such folder" in said("--checkpoint", tmp_path / "nowhere")
    assert "'pairs' is needed" in said("--pairs", made.home / "embeddings" / "image_embeddings")
    assert "holds no image_embeddings" in refused(
        capsys, "index", made.home, "--pairs", made.home / "pairs", "--out", tmp_path / "index"
    )
    assert "no picture of split 'validation'" in said("--split", "validation")
    assert "holds 'pairs', but 'image_embeddings' is needed" in refused(
        capsys,
        *("index", made.home / "pairs", "--pairs", made.home / "pairs", "--out", tmp_path / "i"),
    )
    fewer = make_pairs(tmp_path / "fewer", made.paths[:8])
    assert "do not match: shard 00001 has" in said("--pairs", fewer.folder)
    assert not (tmp_path / "index" / "index.json").exists()


def test_embeddings_that_are_not_finished_are_refused(made, tmp_path, capsys):
    home = copy(made, tmp_path, "embeddings")
    (home / "embeddings" / "text_embeddings" / "dataset.json").unlink()
    said = refused(
        capsys, "index", home / "embeddings", "--pairs", made.home / "pairs", "--out", home / "i"
    )
    assert "text_embeddings: no dataset" in said


def test_another_split_in_the_same_folder_is_refused(made, capsys):
    said = refused(capsys, *made.command, "--split", "test")
    assert 'config.split: "all" there, "test" now' in said


# Search


def by_hand(made, query: np.ndarray, k: int) -> list[tuple[int, float]]:
    """Rows and scores of the pictures closest to a query [A, E]."""
    scored = []
    for number, shard in enumerate(
        Dataset.open(str(made.home / "embeddings" / "image_embeddings")).shards()
    ):
        for row, vectors in enumerate(shard.table.column("vectors").to_pylist()):
            vectors = on_grid(np.reshape(vectors, (4, 16)).astype(np.float32))
            scored.append((-(on_grid(query) @ vectors.T).max(), 6 * number + row))
    return [(row, -score) for score, row in sorted(scored)[:k]]


@pytest.mark.parametrize("k", [1, 4, 50])
def test_texts_find_the_pictures_closest_to_them(made, capsys, k):
    texts = ["a red boat", "two dogs"]
    found = searched(capsys, made.home / "index", *texts, "--k", k)
    assert found["index"] == json.loads((made.home / "index" / "index.json").read_text())["digest"]
    assert [one["text"] for one in found["searches"]] == texts
    pairs = Dataset.open(str(made.home / "pairs"))
    rows = [row for shard in pairs.shards() for row in shard.table.to_pylist()]
    vectors = made.stage1.embed_texts(texts).numpy()
    for one, vector in zip(found["searches"], vectors, strict=True):
        expected = by_hand(made, vector[None], k)
        assert one["results"] == [
            {
                "rank": rank,
                "score": round(score, 6),
                "uid": uid(row).hex(),
                "url": rows[row]["url"],
                "captions": [c["text"] for c in rows[row]["captions"] if c["status"] == "kept"],
                "shard": row // 6,
                "row": row % 6,
            }
            for rank, (row, score) in enumerate(expected, 1)
        ]


def test_a_file_finds_its_own_row_first(made, tmp_path, capsys):
    turned = tmp_path / "turned.png"
    Image.open(made.paths[7]).save(turned)
    found = searched(capsys, made.home / "index", "--image", made.paths[3], turned, "--k", 2)
    for one, row in zip(found["searches"], (3, 7), strict=True):
        best, second = one["results"]
        assert (best["uid"], best["shard"], best["row"]) == (uid(row).hex(), row // 6, row % 6)
        assert best["score"] == pytest.approx(1, abs=1e-5)
        assert second["score"] < best["score"]
    assert [one["image"] for one in found["searches"]] == [str(made.paths[3]), str(turned)]


def test_queries_are_read_as_captions_are(made, capsys):
    index = made.home / "index"
    plain, odd = (searched(capsys, index, text) for text in ("a red boat", "  a red\t boat\n"))
    assert odd["searches"][0]["results"] == plain["searches"][0]["results"]


def test_people_get_columns_and_nothing_their_terminal_would_obey(made, capsys):
    capsys.readouterr()
    run("search", made.home / "index", "a red boat", "a man", "--k", 11)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a red boat"
    assert lines[1].split() == ["rank", "score", "shard:row", "caption", "source"]
    assert [line.split()[0] for line in lines[2:13]] == [str(rank) for rank in range(1, 12)]
    assert lines[13] == ""
    assert lines[14] == "a man"
    starts = {line.index("http://") for line in lines[2:13]}
    assert starts == {lines[1].index("source")}
    assert "\x1b" not in "".join(lines)
    found = searched(capsys, made.home / "index", "a red boat", "--k", 11)
    for line, result in zip(lines[2:13], found["searches"][0]["results"], strict=True):
        assert f" {result['score']:.4f} " in line
        assert f" {result['shard']}:{result['row']} " in line
        more = f" (+{len(result['captions']) - 1})" if len(result["captions"]) > 1 else ""
        assert f" {result['captions'][0] if result['captions'] else '-'}{more} " in line


def test_what_is_saved_is_what_is_stored(made, tmp_path, capsys):
    out = tmp_path / "saved"
    found = searched(
        capsys, made.home / "index", "a red boat", "--image", made.paths[0], "--k", 3, "--save", out
    )
    assert json.loads((out / "results.json").read_text()) == found
    names = [[result["file"] for result in one["results"]] for one in found["searches"]]
    assert names == [[f"{search:02d}-{rank:02d}.jpg" for rank in (1, 2, 3)] for search in (0, 1)]
    assert {path.name for path in out.iterdir()} == {"results.json", *names[0], *names[1]}
    pairs = Dataset.open(str(made.home / "pairs"))
    for one in found["searches"]:
        for result in one["results"]:
            stored = pairs.shard(result["shard"]).table.column("picture")[result["row"]].as_py()
            assert (out / result["file"]).read_bytes() == stored


def test_what_was_taken_down_is_neither_found_nor_saved(made, tmp_path, capsys):
    home = copy(made, tmp_path, "index", "pairs")
    first = searched(capsys, home / "index", "a red boat", "--k", 11)["searches"][0]["results"]
    add_tombstones(Folder.at(home / "index"), [bytes.fromhex(first[0]["uid"])])
    add_tombstones(Folder.at(home / "pairs"), [bytes.fromhex(first[1]["uid"])])
    arguments = ["a red boat", "--k", 3, "--save", home / "saved", "--pairs", home / "pairs"]
    again = searched(capsys, home / "index", *arguments)["searches"][0]["results"]
    assert [result["uid"] for result in again] == [result["uid"] for result in first[1:4]]
    assert "file" not in again[0]
    assert {path.name for path in (home / "saved").iterdir()} == {
        *("results.json", "00-02.jpg", "00-03.jpg")
    }


def test_what_search_cannot_use_is_one_line(made, tmp_path, capsys):
    index = made.home / "index"

    def said(*arguments: object) -> str:
        return refused(capsys, "search", index, *arguments)

    assert "texts, image: give a text or a picture" in said()
    assert "texts: one of them is empty" in said("a", " \t")
    assert "k: 0 is not positive" in said("a", "--k", 0)
    assert f"{tmp_path / 'no.jpg'}: cannot be read: No such file" in said(
        "--image", tmp_path / "no.jpg"
    )
    assert f"{tmp_path}: cannot be read: Is a directory" in said("--image", tmp_path)
    (tmp_path / "page.jpg").write_text("<html>")
    assert "page.jpg: cannot be used as a picture (failed:not_a_picture)" in said(
        "--image", tmp_path / "page.jpg"
    )
    other = said("a", "--checkpoint", made.home / "other")
    assert f"was made with checkpoint {made.checkpoint.digest[:16]}, not with" in other
    assert "no such folder" in said("a", "--checkpoint", tmp_path / "nowhere")
    pairs = make_pairs(tmp_path / "pairs", made.paths[:11], seed=1)
    wrong = said("a", "--save", tmp_path / "out", "--pairs", tmp_path / "pairs")
    assert f"was made of pairs {Dataset.open(str(made.home / 'pairs')).digest[:16]}, not" in wrong
    assert pairs.digest[:16] in wrong
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("x")
    assert "cannot be" in said("a", "--save", tmp_path / "file")
    assert "no such folder" in refused(capsys, "search", tmp_path / "nothing", "a")


def test_what_is_remembered_but_gone_is_named_with_its_option(made, tmp_path, capsys):
    home = copy(made, tmp_path, "index")
    config = home / "index" / "config.yaml"
    values = yaml.safe_load(config.read_text())
    gone = values | {"checkpoint": "/gone/stage1", "pairs": "/gone/pairs"}
    config.write_text(yaml.safe_dump(gone))
    said = refused(capsys, "search", home / "index", "a")
    assert "/gone/stage1: no such folder" in said
    assert "--checkpoint" in said
    stage1 = ["--checkpoint", made.home / "stage1"]
    said = refused(capsys, "search", home / "index", "a", *stage1, "--save", tmp_path / "out")
    assert "/gone/pairs: no such folder" in said
    assert "--pairs" in said
    for damage in ("{", "- a list", "\x00"):
        config.write_text(damage)
        said = refused(capsys, "search", home / "index", "a")
        assert "remembers no checkpoint" in said
    said = refused(capsys, "search", home / "index", "a", *stage1, "--save", tmp_path / "out")
    assert "remembers no pairs" in said


def test_features_of_another_encoder_are_refused(made, tmp_path, capsys):
    """A checkpoint whose encoder cannot be had again, as it was then."""
    opened = Checkpoint.open(str(made.home / "stage1"))
    spec = opened.lineage.frozen["encoder"] | {"weights_digest": "0" * 64}
    lineage = replace(opened.lineage, frozen={"encoder": spec})
    folder = Folder.at(tmp_path / "stage1")
    contents = {role: opened.read(role) for role in ("weights", "tokenizer")}
    changed = write_checkpoint(replace(opened, folder=folder, lineage=lineage, files={}), contents)
    with pytest.raises(index_job.ConfigError, match="weights 0000000000000000, here are"):
        CheckpointEmbedder(changed).tokens([Image.open(made.paths[0])])


# Additions


@pytest.fixture
def index(made, tmp_path) -> Path:
    """That of the eleven, to be added to."""
    return copy(made, tmp_path, "index") / "index"


def numbers_by_hand(made, query: np.ndarray) -> list[int]:
    """Numbers of all seventeen pictures, those closest to a query [A, E] first."""
    scored = {}
    for name, first in (("embeddings-2", 9), ("embeddings", 0)):
        folder = str(made.home / name / "image_embeddings")
        for number, shard in enumerate(Dataset.open(folder).shards()):
            for row, vectors in enumerate(shard.table.column("vectors").to_pylist()):
                vectors = on_grid(np.reshape(vectors, (4, 16)).astype(np.float32))
                scored[first + 6 * number + row] = (on_grid(query) @ vectors.T).max()
    return sorted(scored, key=lambda number: (-scored[number], number))


def numbers_of(results: list[dict]) -> list[int]:
    return [int(result["uid"], 16) for result in results]


def test_pictures_that_were_added_are_found_beside_those_that_were_there(
    made, index, tmp_path, capsys, caplog
):
    text = "a red boat"
    (vector,) = made.stage1.embed_texts([text]).numpy()
    expected = numbers_by_hand(made, vector[None])
    with caplog.at_level("INFO"):
        run(*made.add, index)
    assert f"left out: 2 of 8 pictures, which {index} has already" in caplog.text
    assert "index of 17 pictures with 4 vectors each (exact)" in capsys.readouterr().out
    found = searched(capsys, index, text, "--k", 30, "--save", tmp_path / "saved")
    results = found["searches"][0]["results"]
    assert numbers_of(results) == expected
    assert [result["part"] for result in results] == [int(number > 10) for number in expected]
    for result in results:
        pairs = Dataset.open(str(made.home / ("pairs-2" if result["part"] else "pairs")))
        row = pairs.shard(result["shard"]).table.slice(result["row"], 1).to_pylist()[0]
        assert (row["uid"].hex(), row["url"]) == (result["uid"], result["url"])
        assert (tmp_path / "saved" / result["file"]).read_bytes() == row["picture"]
    run("search", index, text, "--k", 1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["rank", "score", "part:shard:row", "caption", "source"]
    assert " {part}:{shard}:{row} ".format(**results[0]) in lines[2]
    # Done is done.
    before = (index / "index.json").read_bytes()
    with caplog.at_level("INFO"):
        run(*made.add, index)
        run("index", "--config", index / "added-00001" / "config.yaml")
    assert caplog.text.count("already there: ") == 2
    assert (index / "index.json").read_bytes() == before


def test_captions_and_reranking_go_over_all_parts(made, index, capsys):
    run(*made.add, index)
    file = made.paths[12]
    (found,) = searched(capsys, index, "--image", file, "--find", "captions", "--k", 99)["searches"]
    assert {int(one["uid"], 16) for one in found["captions"]} == {
        *(row for row in range(11) if row % 3),
        *(9 + row for row in range(2, 8) if row % 3),
    }
    asked = (index, "a red boat", "--k", 17, "--rerank", 17)
    encoded = searched(capsys, *asked)["searches"][0]["results"]
    both = [made.home / name / "features" for name in ("embeddings-2", "embeddings")]
    moved = ("--pairs", made.home / "pairs-2", "--pairs", made.home / "pairs")
    for given in (both[:1], both[1:], both):
        named = [word for features in given for word in ("--features", features)]
        cached = searched(capsys, *asked, *named, *moved)["searches"][0]["results"]
        matches = {one["uid"]: one["match"] for one in encoded}
        for one in cached:
            assert one["match"] == pytest.approx(matches[one["uid"]], rel=0.02, abs=0.02)
    said = refused(capsys, "search", made.home / "index", *asked[1:], "--features", both[0])
    assert f"{both[0]} has other pictures' features" in said
    said = refused(capsys, "search", made.home / "index", *asked[1:], "--pairs", moved[1])
    assert "was made of pairs" in said


def test_an_addition_that_was_killed_goes_on_with_the_same_command(
    made, index, tmp_path, monkeypatch, capsys
):
    shutil.copytree(index, tmp_path / "unbroken")
    run(*made.add, tmp_path / "unbroken")
    before = searched(capsys, index, "a red boat", "--k", 30)

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(building, "publish", killed)
        assert main([str(word) for word in (*made.add, index)]) == 130
    assert searched(capsys, index, "a red boat", "--k", 30) == before
    said = refused(capsys, *made.add, index, "--split", "test")
    assert "added-00001: another addition was begun there (config.split" in said
    run(*made.add, index)
    one, other = (RetrievalIndex.open(str(home)) for home in (index, tmp_path / "unbroken"))
    assert one.digest == other.digest
    assert one.pictures.equals(other.pictures)


def test_what_cannot_be_added_is_one_line(made, index, tmp_path, capsys):
    with claimed(Folder.at(index), "viaduct x"):
        said = refused(capsys, *made.add, index)
    assert "index: another job is writing here (viaduct x, process" in said
    assert "out, add_to: give one of them" in refused(capsys, *made.add[:-1])
    assert "out, add_to: give" in refused(capsys, *made.add, index, "--out", tmp_path / "x")
    images = made.home / "embeddings-2" / "image_embeddings"
    said = refused(capsys, "index", images, *made.add[2:], index)
    assert "index: has vectors of captions, what is added has none" in said
    assert "nowhere: no such folder" in refused(capsys, *made.add, tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    assert [path.name for path in index.iterdir() if path.name.startswith("added")] == []


def test_a_running_server_follows(made, index):
    """Its list of pictures, and the replica that searches them."""
    places = PlacesConfig()
    catalogue = open_catalogue(str(index), places)
    work = {"max_batch": 4, "max_heavy_batch": 4, "threads": 1, "device": "cpu"}
    replica = Replica(
        ReplicaWork(index=str(index), places=places, pictures=PictureConfig(), **work)
    )
    assert catalogue.get().find(uid(13)) is None
    assert not catalogue.get().has_additions
    run(*made.add, index)
    found = catalogue.get(now=True).find(uid(13))
    assert (found.part, found.shard, found.row) == (1, 0, 4)
    stored = Dataset.open(str(made.home / "pairs-2")).shard(0).table.column("picture")
    assert catalogue.get().picture(uid(13)) == stored[4].as_py()
    assert catalogue.get().facts()["num_pictures"] == 17
    # The replica has not looked yet: a picture that it does not know has it look.
    reply = asyncio.run(replica(Asked(like=found, k=99)))
    assert reply.index == RetrievalIndex.open(str(index)).digest
    assert sorted(numbers_of(reply.results)) == [number for number in range(17) if number != 13]
    assert {one["part"] for one in reply.results} == {0, 1}


def test_a_takedown_from_pairs_that_were_added_is_seen_by_a_running_server(made, index, tmp_path):
    copy(made, tmp_path, "pairs-2")
    catalogue = open_catalogue(str(index), PlacesConfig())
    run(*made.add[:3], tmp_path / "pairs-2", "--add-to", index)
    assert catalogue.get(now=True).find(uid(13)) is not None
    add_tombstones(Folder.at(tmp_path / "pairs-2"), [uid(13), uid(9)])
    assert catalogue.get(now=True).find(uid(13)) is None
    assert catalogue.get().find(uid(9)) is not None  # it is shown out of the first
