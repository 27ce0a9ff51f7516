"""`viaduct evaluate captions` on captions of a small dataset."""

import json
from pathlib import Path

import pytest

from jobs.cli import main
from jobs.evaluate.caption_scores import caption_scores
from pipeline.captions import kept_texts
from pipeline.dataset import Dataset


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def truths(data) -> list[tuple[str, str, list[str]]]:
    """uid, split and captions of each picture."""
    found = []
    for shard in Dataset.open(str(data / "pairs")).shards():
        table = shard.table
        kept = kept_texts(table.column("captions"))
        columns = (table.column(name).to_pylist() for name in ("uid", "split"))
        for uid, split, its in zip(*columns, kept, strict=True):
            found.append((uid.hex(), split, [text for _, text in its]))
    return found


def write(file: Path, captions: object) -> Path:
    file.write_text(json.dumps({"checkpoint": "c" * 64, "stage": 2, "captions": captions}))
    return file


def test_captions_are_measured_against_those_the_pictures_came_with(tmp_path, data, truths, capsys):
    test = [(uid, its) for uid, split, its in truths if split == "test"]
    captions = [
        {"picture": "p", "uid": uid, "caption": f"picture number {n}", "captions": ["a", "b"]}
        for n, (uid, _) in enumerate(test)
    ]
    file = write(tmp_path / "captions.json", captions)
    command = ("evaluate", "captions", file, "--captions", data / "pairs")
    run(*command, "--out", tmp_path / "result.json")
    found = json.loads((tmp_path / "result.json").read_text())
    told = [(f"picture number {n}", its) for n, (_, its) in enumerate(test) if its]
    expected = caption_scores([one for one, _ in told], [its for _, its in told])
    assert found == {
        "checkpoint": "c" * 64,
        "split": "test",
        "num_pictures": len(told),
        "num_references": sum(len(its) for _, its in told),
        "num_without_reference": len(test) - len(told),
        **expected.to_json(),
    }
    assert 0 < len(told) < len(test)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"test: {len(told)} pictures, ")
    assert said[1].split()[:2] == ["CIDEr", f"{expected.cider.value:.1f}"]
    run(*command, "--json")
    assert json.loads(capsys.readouterr().out) == found


def test_splits_that_were_mixed_are_told(tmp_path, data, truths):
    captions = [{"uid": uid, "caption": "picture"} for uid, *_ in truths]
    run(
        *("evaluate", "captions", write(tmp_path / "c.json", captions)),
        *("--captions", data / "pairs", "--out", tmp_path / "r.json"),
    )
    assert json.loads((tmp_path / "r.json").read_text())["split"] == "test+train+validation"


def test_what_is_no_file_of_captions_is_one_line(tmp_path, data, truths, refused):
    uid = truths[0][0]

    def said(captions: object) -> str:
        file = write(tmp_path / "c.json", captions)
        return refused("evaluate", "captions", file, "--captions", data / "pairs")

    assert "c.json: has no list `captions`" in said({"a": 1})
    assert "c.json: captions[0]: has no text `caption`" in said([{"uid": uid, "caption": 3}])
    line = said([{"picture": "boat.jpg", "caption": "a boat"}])
    assert "c.json: captions[0]: has no uid; caption pictures of --features, not files" in line
    twice = [{"uid": uid, "caption": "a"}] * 2
    assert f"c.json: captions[1]: picture {uid} is there twice" in said(twice)
    gone = said([{"uid": "0" * 32, "caption": "a"}])
    assert f"c.json: picture {'0' * 32} is not in {data}/pairs" in gone
    assert "0 captions: CIDEr" in said([])
    (tmp_path / "c.json").write_text("{")
    command = ("evaluate", "captions", tmp_path / "c.json", "--captions", data / "pairs")
    assert "c.json: not JSON" in refused(*command)
    command = ("evaluate", "captions", tmp_path / "none.json", "--captions", data / "pairs")
    assert "none.json: no such file" in refused(*command)
