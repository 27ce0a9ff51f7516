"""Searches of a small index beside a computation written out, as a user runs them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml
from PIL import Image

from indexes.exact import on_grid
from jobs import index as index_job
from jobs.cli import main
from jobs.search_models import CheckpointEmbedder
from model.checkpoint import Checkpoint, write_checkpoint
from pipeline.dataset import Dataset
from pipeline.storage import Folder
from pipeline.tombstones import add_tombstones


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def uid(row: int) -> bytes:
    return row.to_bytes(16, "big")


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
def test_texts_find_the_pictures_closest_to_them(made, k, searched):
    texts = ["a red boat", "two dogs"]
    found = searched(made.home / "index", *texts, "--k", k)
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


def test_a_file_finds_its_own_row_first(made, tmp_path, searched):
    turned = tmp_path / "turned.png"
    Image.open(made.paths[7]).save(turned)
    found = searched(made.home / "index", "--image", made.paths[3], turned, "--k", 2)
    for one, row in zip(found["searches"], (3, 7), strict=True):
        best, second = one["results"]
        assert (best["uid"], best["shard"], best["row"]) == (uid(row).hex(), row // 6, row % 6)
        assert best["score"] == pytest.approx(1, abs=1e-5)
        assert second["score"] < best["score"]
    assert [one["image"] for one in found["searches"]] == [str(made.paths[3]), str(turned)]


def test_queries_are_read_as_captions_are(made, searched):
    index = made.home / "index"
    plain, odd = (searched(index, text) for text in ("a red boat", "  a red\t boat\n"))
    assert odd["searches"][0]["results"] == plain["searches"][0]["results"]


def test_people_get_columns_and_nothing_their_terminal_would_obey(made, capsys, searched):
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
    found = searched(made.home / "index", "a red boat", "--k", 11)
    for line, result in zip(lines[2:13], found["searches"][0]["results"], strict=True):
        assert f" {result['score']:.4f} " in line
        assert f" {result['shard']}:{result['row']} " in line
        more = f" (+{len(result['captions']) - 1})" if len(result["captions"]) > 1 else ""
        assert f" {result['captions'][0] if result['captions'] else '-'}{more} " in line


def test_what_is_saved_is_what_is_stored(made, tmp_path, searched):
    out = tmp_path / "saved"
    found = searched(
        made.home / "index", "a red boat", "--image", made.paths[0], "--k", 3, "--save", out
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


def test_what_was_taken_down_is_neither_found_nor_saved(made, searched, copy):
    home = copy("index", "pairs")
    first = searched(home / "index", "a red boat", "--k", 11)["searches"][0]["results"]
    add_tombstones(Folder.at(home / "index"), [bytes.fromhex(first[0]["uid"])])
    add_tombstones(Folder.at(home / "pairs"), [bytes.fromhex(first[1]["uid"])])
    arguments = ["a red boat", "--k", 3, "--save", home / "saved", "--pairs", home / "pairs"]
    again = searched(home / "index", *arguments)["searches"][0]["results"]
    assert [result["uid"] for result in again] == [result["uid"] for result in first[1:4]]
    assert "file" not in again[0]
    assert {path.name for path in (home / "saved").iterdir()} == {
        *("results.json", "00-02.jpg", "00-03.jpg")
    }


def test_what_search_cannot_use_is_one_line(made, tmp_path, refused):
    index = made.home / "index"

    def said(*arguments: object) -> str:
        return refused("search", index, *arguments)

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
    pairs = made.make_pairs(tmp_path / "pairs", made.paths[:11], seed=1)
    wrong = said("a", "--save", tmp_path / "out", "--pairs", tmp_path / "pairs")
    assert f"was made of pairs {Dataset.open(str(made.home / 'pairs')).digest[:16]}, not" in wrong
    assert pairs.digest[:16] in wrong
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("x")
    assert "cannot be" in said("a", "--save", tmp_path / "file")
    assert "no such folder" in refused("search", tmp_path / "nothing", "a")


def test_what_is_remembered_but_gone_is_named_with_its_option(made, tmp_path, refused, copy):
    home = copy("index")
    config = home / "index" / "config.yaml"
    values = yaml.safe_load(config.read_text())
    gone = values | {"checkpoint": "/gone/stage1", "pairs": "/gone/pairs"}
    config.write_text(yaml.safe_dump(gone))
    said = refused("search", home / "index", "a")
    assert "/gone/stage1: no such folder" in said
    assert "--checkpoint" in said
    stage1 = ["--checkpoint", made.home / "stage1"]
    said = refused("search", home / "index", "a", *stage1, "--save", tmp_path / "out")
    assert "/gone/pairs: no such folder" in said
    assert "--pairs" in said
    for damage in ("{", "- a list", "\x00"):
        config.write_text(damage)
        said = refused("search", home / "index", "a")
        assert "remembers no checkpoint" in said
    said = refused("search", home / "index", "a", *stage1, "--save", tmp_path / "out")
    assert "remembers no pairs" in said


def test_features_of_another_encoder_are_refused(made, tmp_path):
    """A checkpoint whose encoder cannot be had again, as it was then."""
    opened = Checkpoint.open(str(made.home / "stage1"))
    spec = opened.lineage.frozen["encoder"] | {"weights_digest": "0" * 64}
    lineage = replace(opened.lineage, frozen={"encoder": spec})
    folder = Folder.at(tmp_path / "stage1")
    contents = {role: opened.read(role) for role in ("weights", "tokenizer")}
    changed = write_checkpoint(replace(opened, folder=folder, lineage=lineage, files={}), contents)
    with pytest.raises(index_job.ConfigError, match="weights 0000000000000000, here are"):
        CheckpointEmbedder(changed).tokens([Image.open(made.paths[0])])
