"""TensorBoard shows what the lines say, and so does Weights & Biases."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import jobs.training.run as train_run
from jobs.cli import main
from jobs.training.boards import WeightsAndBiases
from model.checkpoint import Checkpoint
from pipeline.storage import Folder

pytestmark = pytest.mark.usefixtures("ray_session")


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_tensorboard_shows_the_same(unbroken, metrics):
    board = EventAccumulator(str(unbroken / "tensorboard")).Reload()
    for split in ("train", "validation"):
        lines = [line for line in metrics(unbroken) if line["split"] == split]
        found = board.Scalars(f"{split}/loss")
        assert [event.step for event in found] == [line["step"] for line in lines]
        told = [line["loss"] for line in lines]
        assert [event.value for event in found] == pytest.approx(told)


@pytest.fixture
def wandb(monkeypatch) -> SimpleNamespace:
    """In place of the package: keeps what it is told in `begun`, `logged` and `ended`."""
    told = SimpleNamespace(begun=[], logged=[], ended=0, fails=False)

    class Refused(Exception):
        pass

    class Run:
        def define_metric(self, name: str, step_metric: str) -> None:
            assert (name, step_metric) == ("*", "step")

        def log(self, values: dict) -> None:
            told.logged.append(values)

        def finish(self) -> None:
            told.ended += 1

    def init(**options: object) -> Run:
        if told.fails:
            raise Refused("api_key not configured (no-tty)\nmore of it")
        told.begun.append(options)
        return Run()

    fake = ModuleType("wandb")
    fake.__spec__ = ModuleSpec("wandb", None)
    fake.init, fake.errors, fake.Table = init, SimpleNamespace(Error=Refused), list
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return told


def test_weights_and_biases_gets_every_line_and_goes_on_with_its_run(
    tmp_path, stage1_command, rank_here, monkeypatch, wandb, metrics, unbroken
):
    def stop(*_):
        raise KeyboardInterrupt

    out = tmp_path / "out"
    command = stage1_command(out, "--wandb", "viaduct")
    with rank_here():
        with monkeypatch.context() as patch:
            patch.setattr(train_run, "publish_last", stop)
            assert run(*command) == 130
        assert wandb.logged == [shown(line) for line in metrics(out)]
        assert wandb.ended == 1
        assert run(*command) == 0
    first, second = wandb.begun
    assert first == second
    assert (first["project"], first["resume"], first["dir"]) == ("viaduct", "allow", str(out))
    assert first["config"]["config"]["batch_size"] == 8
    assert Checkpoint.open(str(out)).digest == Checkpoint.open(str(unbroken)).digest


def test_without_the_package_it_is_one_line_before_anything_starts(
    tmp_path, stage1_command, no_ranks, refused, monkeypatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    line = refused(*stage1_command(tmp_path / "out", "--wandb", "viaduct"))
    assert "wandb: the package is not installed: pip install wandb" in line


def test_a_run_that_cannot_be_begun_is_one_line(
    tmp_path, stage1_command, rank_here, refused, wandb
):
    wandb.fails = True
    with rank_here():
        line = refused(*stage1_command(tmp_path / "out", "--wandb", "viaduct"))
    assert "wandb: viaduct: cannot be begun: api_key not configured (no-tty)" in line


@pytest.mark.slow
def test_the_package_itself_takes_what_it_is_told(tmp_path, monkeypatch):
    """Offline: nothing leaves the machine."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    board = WeightsAndBiases("viaduct", Folder.at(tmp_path), {"steps": 2})
    board.numbers(1, "train", {"loss": 2.5})
    board.texts(1, [{"uid": "00", "caption": "a boat", "written": "a red boat"}])
    board.close()
    (run_of_it,) = (tmp_path / "wandb").glob("offline-run-*")
    (kept,) = run_of_it.glob("*.wandb")
    assert b"train/loss" in kept.read_bytes()
    assert run_of_it.name.endswith((tmp_path / ".wandb_id").read_text())


def shown(line: dict) -> dict:
    """A line of metrics as it is told there."""
    return {"step": line["step"]} | {
        f"{line['split']}/{name}": value
        for name, value in line.items()
        if name not in ("step", "split")
    }
