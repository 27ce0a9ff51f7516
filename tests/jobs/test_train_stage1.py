"""Stage 1 as a user trains it: its losses, its lineage, what it refuses."""

import json
import math
import shutil
from pathlib import Path

import pytest

from jobs.cli import main
from model.checkpoint import Checkpoint
from pipeline.dataset import Dataset
from pipeline.tombstones import add_tombstones

pytestmark = pytest.mark.usefixtures("ray_session")


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_the_loss_is_the_sum_of_those_that_have_joined(unbroken, metrics):
    for line in metrics(unbroken):
        joined = line.get("itm", 0.0)
        assert line["loss"] == pytest.approx(line["itc"] + line["itg"] + joined, rel=1e-5)
    first, *_, last = (line for line in metrics(unbroken) if line["split"] == "train")
    assert last["itg"] < first["itg"]


def test_rates_and_hardness_are_those_of_the_step(unbroken, metrics):
    lines = {line["step"]: line for line in metrics(unbroken) if line["split"] == "train"}
    rates = [lines[step]["learning_rate"] for step in range(1, 13)]
    falling = [1e-3 * (1 + math.cos(math.pi * at / 9)) for at in range(10)]
    assert rates == pytest.approx([1e-3, 2e-3, *falling], abs=1e-9)
    hardness = [lines[step]["itm_hardness"] for step in range(6, 13)]
    expected = [min(1.0, (step - 4.8) / 3.6) for step in range(5, 12)]
    assert hardness == pytest.approx(expected)


def test_the_checkpoint_names_what_it_was_made_from(unbroken, data, bert_folder):
    lineage = Checkpoint.open(str(unbroken)).lineage
    features, pairs = (Dataset.open(str(data / name)) for name in ("features", "pairs"))
    assert lineage.parents == (features.as_parent, pairs.as_parent)
    assert lineage.frozen["encoder"] == features.manifest.lineage.frozen["encoder"]
    assert lineage.frozen["start"]["name"] == f"hf:{bert_folder}"
    assert lineage.config["itm_joins_at"] == 0.4
    (run_of_it,) = json.loads((unbroken / "run.json").read_text())["runs"]
    (phase,) = run_of_it["phases"]
    assert phase["failures"] == 0
    assert run_of_it["ended"]


def test_the_seed_decides(tmp_path, stage1_command, rank_here, unbroken, read_training):
    with rank_here():
        assert run(*stage1_command(tmp_path / "same")) == 0
        assert run(*stage1_command(tmp_path / "other", "--seed", 1)) == 0
    assert read_training(tmp_path / "same") == read_training(unbroken)
    other = read_training(tmp_path / "other")
    assert other.digest != read_training(unbroken).digest
    for ours, theirs in zip(other.lines, read_training(unbroken).lines, strict=True):
        assert ours["loss"] != theirs["loss"]


def test_without_held_out_pictures_it_trains_without_validation(
    tmp_path, data, stage1_command, rank_here, caplog, metrics
):
    take_down(tmp_path, data, "validation")
    command = stage1_command(tmp_path / "out", "--captions", tmp_path / "pairs", "--steps", 4)
    with rank_here():
        assert run(*command) == 0
    assert [line["split"] for line in metrics(tmp_path / "out")] == ["train"] * 4
    assert "trains without validation" in caplog.text


def take_down(home: Path, data: Path, split: str) -> None:
    """A copy of `pairs` without the pictures of a split."""
    shutil.copytree(data / "pairs", home / "pairs")
    pairs = Dataset.open(str(home / "pairs"))
    for shard in pairs.shards():
        rows = shard.table.select(["uid", "split"]).to_pylist()
        add_tombstones(pairs.folder, [row["uid"] for row in rows if row["split"] == split])


# What it refuses


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--batch-size", 100], "batch_size: 100, but there are"),
        (["--ranks", 3], "ranks: 3, but Ray has 2 times 1 CPUs"),
        (["--ranks", 2, "--batch-size", 7], "batch_size: 7 is no multiple of ranks=2"),
        (["--device", "cuda"], "ranks: 1, but Ray has 0 GPUs"),
        (["--validate-every", 5, "--log-every", 2], "validate_every: 5 is no multiple"),
        (["--steps", 0], "steps: 0 is too small"),
        (["--start", "hf:/nowhere"], "start: hf:/nowhere cannot be had"),
        (["--start", "magic"], "'magic' is neither hf:NAME_OR_FOLDER nor"),
        (["--width", 64], "has its own; only 'scratch' takes one"),
        (["--captions", "/nowhere"], "/nowhere: no such folder"),
        (["--max-text-tokens", 33], "max_text_tokens: 33, but max_positions=32"),
    ],
)
def test_wrong_input_is_one_line_before_anything_starts(
    tmp_path, stage1_command, no_ranks, refused, options, told
):
    assert told in refused(*stage1_command(tmp_path / "out", *options))
    assert not (tmp_path / "out").exists()


def test_an_empty_training_split_is_refused(tmp_path, data, stage1_command, no_ranks, refused):
    take_down(tmp_path, data, "train")
    line = refused(*stage1_command(tmp_path / "out", "--captions", tmp_path / "pairs"))
    assert "pairs: its split 'train' has no picture with a kept caption" in line
