"""A training's folder: run once more, stopped and begun again, damaged, of something else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import jobs.training.run as train_run
from jobs.cli import main
from model.checkpoint import Checkpoint

pytestmark = pytest.mark.usefixtures("ray_session")


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_the_same_command_again_returns_at_once(unbroken, stage1_command, no_ranks, capsys):
    before = {path: path.stat().st_mtime_ns for path in unbroken.rglob("*") if path.is_file()}
    assert run(*stage1_command(unbroken)) == 0
    assert run("train-stage1", "--config", unbroken / "config.yaml") == 0
    digest = Checkpoint.open(str(unbroken)).digest[:16]
    assert capsys.readouterr().out.count(f"stage 1, 12 steps, digest {digest}") == 2
    after = {path: path.stat().st_mtime_ns for path in unbroken.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--seed", 1, "config.seed: 0 there, 1 now"),
        ("--steps", 16, "config.steps: 12 there, 16 now"),
        ("--learning-rate", 0.1, "config.learning_rate: 0.002 there, 0.1 now"),
        ("--dropout", 0.0, "config.dropout: 0.1 there, 0.0 now"),
        ("--itm-joins-at", 0.1, "config.itm_joins_at: 0.4 there, 0.1 now"),
    ],
)
def test_another_option_in_the_same_folder_is_refused(
    unbroken, stage1_command, no_ranks, refused, option, value, told
):
    line = refused(*stage1_command(unbroken, option, value))
    assert f"stage1: was trained otherwise ({told}); choose another" in line


def test_a_folder_that_holds_something_else_is_refused(tmp_path, stage1_command, no_ranks, refused):
    (tmp_path / "notes.txt").touch()
    assert "holds notes.txt" in refused(*stage1_command(tmp_path))


# Stopped and begun again


@pytest.mark.parametrize("step", [2, 4, 6, 11])
def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(
    tmp_path,
    stage1_command,
    rank_here,
    stop_at,
    monkeypatch,
    unbroken,
    read_training,
    capsys,
    step,
    metrics,
    steps_of,
):
    """Before the first checkpoint, at one, after ITM has joined, and at the last step."""

    command = stage1_command(tmp_path / "out")
    with rank_here():
        with monkeypatch.context():
            stop_at(step)
            assert run(*command) == 130
        assert "stopped; the same command goes on from here" in capsys.readouterr().err
        assert [m["step"] for m in metrics(tmp_path / "out") if m["split"] == "train"][-1] == step
        assert not (tmp_path / "out" / "checkpoint.json").exists()
        monkeypatch.undo()
        with rank_here():
            assert run(*command) == 0
    assert read_training(tmp_path / "out") == read_training(unbroken)
    assert steps_of(tmp_path / "out") == steps_of(unbroken)
    assert len(json.loads((tmp_path / "out/run.json").read_text())["runs"]) == 2


def test_a_training_stopped_between_its_last_step_and_its_end_only_ends(
    tmp_path, stage1_command, rank_here, monkeypatch, unbroken, read_training
):
    def stop(*_):
        raise KeyboardInterrupt

    command = stage1_command(tmp_path / "out")
    with rank_here():
        with monkeypatch.context() as patch:
            patch.setattr(train_run, "publish_last", stop)
            assert run(*command) == 130
        assert run(*command) == 0
    assert read_training(tmp_path / "out") == read_training(unbroken)


def test_an_unfinished_training_with_another_option_is_refused_and_stays(
    tmp_path, stage1_command, rank_here, stop_at, monkeypatch, unbroken, read_training, refused
):
    out = tmp_path / "out"
    stop_at(5)
    with rank_here():
        assert run(*stage1_command(out)) == 130
    monkeypatch.undo()
    line = refused(*stage1_command(out, "--seed", 1))
    assert "out: was begun otherwise (config.seed: 0 there, 1 now); choose another" in line
    with rank_here():
        assert run(*stage1_command(out)) == 0
    assert read_training(out) == read_training(unbroken)


def test_a_damaged_checkpoint_is_named_when_the_training_goes_on(
    tmp_path, stage1_command, rank_here, stop_at, monkeypatch, refused
):
    command = stage1_command(tmp_path / "out")
    file = damaged(command, rank_here, stop_at, monkeypatch)
    with rank_here():
        assert f"{file}: damaged: its digest differs" in refused(*command)


@pytest.mark.slow
def test_what_a_rank_cannot_mend_is_told_at_once_in_one_line(
    tmp_path, stage1_command, rank_here, stop_at, monkeypatch
):
    """In a command of its own: what ranks print would come here at any time."""
    command = stage1_command(tmp_path / "out")
    file = damaged(command, rank_here, stop_at, monkeypatch)
    words = [Path(sys.executable).with_name("viaduct"), *map(str, command)]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 2
    lines = [line for line in ended.stderr.splitlines() if line.startswith("viaduct")]
    assert lines == [f"viaduct train-stage1: {file}: damaged: its digest differs"]
    assert (ended.stdout + ended.stderr).count("its digest differs") == 1  # no traceback ends so
    assert "start again" not in ended.stderr


def damaged(command: list[object], rank_here, stop_at, monkeypatch) -> Path:
    """Stop a training after its first checkpoint, and damage that; the file that has it."""

    stop_at(5)
    with rank_here():
        assert run(*command) == 130
    monkeypatch.undo()
    out = Path(str(command[command.index("--out") + 1]))
    file = out / "checkpoints" / "step-000004" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    return file
