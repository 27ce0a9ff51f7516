"""`viaduct evaluate annotations`: from Karpathy's or COCO's JSON to recall in one command."""

import json
from pathlib import Path

import pytest

from jobs.cli import main
from pipeline.dataset import Dataset

pytestmark = pytest.mark.usefixtures("ray_session")

OPTIONS = ("--control", "none", "--rerank", 4)


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def karpathy(data: Path, out: Path, missing: str | None = None) -> Path:
    """The drawn pictures in Karpathy's format: every third is his test, another picture val."""
    images = [
        {
            "filepath": "images",
            "filename": f"{number:04d}.png" if number or not missing else missing,
            "split": "test" if number % 3 == 0 else "val" if number == 1 else "train",
            "sentences": [{"raw": f"picture number {number}"}, {"raw": "A picture."}],
        }
        for number in range(24)
    ]
    out.write_text(json.dumps({"images": images}))
    return out


@pytest.mark.slow
def test_karpathys_test_split_is_measured_in_one_command(tmp_path, data, unbroken, capsys):
    file = karpathy(data, tmp_path / "dataset.json")
    command = ("evaluate", "annotations", file, "--picture-folder", data / "source")
    command += ("--checkpoint", unbroken, "--out", tmp_path / "out", *OPTIONS)
    run(*command)
    text = (tmp_path / "out" / "evaluation.json").read_text()
    found = json.loads(text)
    assert found["annotations"] == {"file": str(file), "split": "test"}
    assert (found["split"], found["num_pictures"], found["num_captions"]) == ("test", 8, 16)
    assert set(found["recall"]) == {"q_former", "reranked", "chance"}
    pairs = Dataset.open(str(tmp_path / "out" / "pairs"))
    (shard,) = pairs.shards()
    assert set(shard.table.column("split").to_pylist()) == {"test"}
    urls = shard.table.column("url").to_pylist()
    assert urls == [f"images/{number:04d}.png" for number in range(0, 24, 3)]
    capsys.readouterr()
    run(*command)  # goes on: all is there
    assert "test: 8 pictures, 16 captions" in capsys.readouterr().out
    assert (tmp_path / "out" / "evaluation.json").read_text() == text


@pytest.mark.slow
def test_the_control_of_a_set_without_training_pictures_is_fitted_on_others(
    tmp_path, data, unbroken, bert_folder
):
    file = karpathy(data, tmp_path / "dataset.json")
    command = ("evaluate", "annotations", file, "--picture-folder", data / "source")
    command += ("--checkpoint", unbroken, "--out", tmp_path / "out", "--rerank", 0)
    command += ("--control", f"hf:{bert_folder}")
    run(*command)
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (set(found["recall"]), found["control"]) == ({"q_former", "chance"}, "none")
    fitted_on = ("--control-features", data / "features", "--control-captions", data / "pairs")
    run(*command, *fitted_on)
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert set(found["recall"]) == {"q_former", "ridge", "chance"}
    assert found["control"] == f"hf:{bert_folder}"


def test_cocos_json_is_taken_whole_and_leaks_are_looked_for(tmp_path, data, unbroken):
    images = [{"id": n, "file_name": f"images/{n:04d}.png"} for n in range(5)]
    captions = [{"image_id": n % 5, "caption": f"picture number {n % 5} {n}"} for n in range(12)]
    file = tmp_path / "captions.json"
    file.write_text(json.dumps({"images": images, "annotations": captions}))
    run(
        *("evaluate", "annotations", file, "--picture-folder", data / "source"),
        *("--checkpoint", unbroken, "--out", tmp_path / "out", *OPTIONS),
        *("--training", data / "pairs"),
    )
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found["annotations"] == {"file": str(file), "split": None}
    assert (found["num_pictures"], found["num_captions"]) == (5, 12)
    uids = {
        row["uid"].hex()
        for shard in Dataset.open(str(data / "pairs")).shards()
        for row in shard.table.select(["uid", "split"]).to_pylist()
        if row["split"] == "train"
    }
    assert found["leaks"]["same_uid"] == len(uids & set(found["leaks"]["uids"])) > 0


@pytest.mark.slow
def test_an_evaluation_set_that_is_not_whole_is_refused_unless_allowed(
    tmp_path, data, unbroken, refused
):
    file = karpathy(data, tmp_path / "dataset.json", missing="nowhere.png")
    command = ("evaluate", "annotations", file, "--picture-folder", data / "source")
    command += ("--checkpoint", unbroken, "--out", tmp_path / "out", *OPTIONS)
    line = refused(*command)
    assert "out/raw: 7 of 8 pictures can be read (" in line
    assert "or give --allow-missing" in line
    assert not (tmp_path / "out" / "pairs").exists()
    run(*command, "--allow-missing")
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found["num_pictures"] == 7


def test_what_is_no_annotation_file_or_has_another_split_is_one_line(
    tmp_path, data, unbroken, refused
):
    def said(file: object, *options: object) -> str:
        command = ("evaluate", "annotations", file, "--checkpoint", unbroken)
        return refused(*command, "--out", tmp_path / "out", *options)

    assert "is no annotation file (.json)" in said(data / "source" / "pairs.jsonl")
    content = json.loads(karpathy(data, tmp_path / "dataset.json").read_text())
    line = said(tmp_path / "dataset.json", "--annotation-split", "testing")
    assert "no picture of the split 'testing'; there are test, train, val" in line
    content["images"] = [image for image in content["images"] if image["split"] != "test"]
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    line = said(tmp_path / "dataset.json")
    assert f"annotation_split: name one of train, val in {tmp_path}/dataset.json" in line
