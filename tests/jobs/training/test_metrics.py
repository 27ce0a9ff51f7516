"""What a training says of itself, line by line."""

import math

import numpy as np
import pytest

from jobs.cli import main
from model.checkpoint import Checkpoint

pytestmark = pytest.mark.usefixtures("ray_session")


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


LOSSES = {"loss", "itc", "itg", "itc_unsmoothed", "itg_unsmoothed"}
ITM = {"itm", "itm_accuracy"}
RATES = {"step_s", "pairs_per_s", "data_wait_s", "time_left_s"}


def test_metrics_hold_a_line_a_window_and_one_a_validation(unbroken, metrics):
    lines = metrics(unbroken)
    expected = [("train", step) for step in range(1, 13)]
    for step in (4, 8, 12):
        expected.insert(expected.index(("train", step)) + 1, ("validation", step))
    assert [(line["split"], line["step"]) for line in lines] == expected
    for line in lines:
        fields = set(line) - {"step", "split"}
        if line["split"] == "validation":
            recalls = {"recall_at_1_picture_to_text", "recall_at_1_text_to_picture"}
            assert fields == LOSSES | ITM | recalls
        else:
            joined = ITM | {"itm_hardness"} if line["step"] > 5 else set()
            others = {"temperature", "learning_rate", "gradient_norm"}
            assert fields == LOSSES | RATES | others | joined
        assert all(math.isfinite(line[name]) for name in fields)


def test_a_line_is_the_mean_of_its_window_and_how_often_one_looks_changes_nothing(
    tmp_path, stage1_command, rank_here, unbroken, metrics, steps_of
):
    rarely = ("--log-every", 5, "--validate-every", 5, "--checkpoint-every", 10)
    with rank_here():
        assert run(*stage1_command(tmp_path / "out", *rarely, "--keep-checkpoints", 1)) == 0
    assert steps_of(tmp_path / "out") == ["step-000012"]
    assert Checkpoint.open(str(tmp_path / "out")).digest == Checkpoint.open(str(unbroken)).digest
    each = [line for line in metrics(unbroken) if line["split"] == "train"]
    found = [line for line in metrics(tmp_path / "out") if line["split"] == "train"]
    assert [line["step"] for line in found] == [5, 10, 12]
    for line, window in zip(found, (each[:5], each[5:10], each[10:]), strict=True):
        for name in ("loss", "itc", "temperature", "gradient_norm"):
            mean = np.mean([one[name] for one in window])
            assert line[name] == pytest.approx(mean, rel=1e-4), name


def test_a_line_that_was_cut_off_is_written_anew(
    tmp_path, stage1_command, rank_here, stop_at, monkeypatch, unbroken, read_training
):
    command = stage1_command(tmp_path / "out")
    stop_at(6)
    with rank_here():
        assert run(*command) == 130
    monkeypatch.undo()
    with (tmp_path / "out" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "split": "train", "lo')
    with rank_here():
        assert run(*command) == 0
    assert read_training(tmp_path / "out") == read_training(unbroken)
