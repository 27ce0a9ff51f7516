"""Which checkpoints are kept, and what becomes of one that is not saved whole."""

import json
import threading
from collections.abc import Callable

import pytest
import torch

from jobs.cli import main
from jobs.training import LoopConfig, Training
from jobs.training import checkpoints as under_test
from jobs.training.checkpoints import Checkpoints, best_of
from model.checkpoint import Checkpoint
from model.checkpoint_models import load_stage1
from model.optimizer import OptimizerConfig, make_optimizer
from pipeline.errors import ConfigError
from pipeline.lineage import Lineage
from pipeline.storage import Folder


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


# Which are kept


@pytest.mark.parametrize(
    ("steps", "merits", "best"),
    [
        ([2, 4, 6], {2: 0.1, 4: 0.3, 6: 0.2}, 4),
        ([2, 4, 6], {2: 0.3, 4: 0.3}, 4),
        ([4, 6], {2: 0.9, 4: 0.1, 6: 0.2}, 6),
        ([2, 4], {3: 0.9}, None),
        ([], {}, None),
    ],
)
def test_the_best_is_the_later_of_equals_among_those_that_are_there(steps, merits, best):
    assert best_of(steps, merits) == best


def test_the_best_stays_beside_the_last_ones(make_checkpoints, tmp_path):
    module, optimizer = small(0)
    recalls = {2: 0.1, 4: 0.5, 6: 0.2, 8: 0.3, 12: 0.4}
    with make_checkpoints(keep_checkpoints=2) as checkpoints:
        for step in (2, 4, 6, 8, 10, 12):
            so_far = {at: {"recall": recall} for at, recall in recalls.items() if at <= step}
            checkpoints.save(step, module, optimizer, so_far, lambda its: its["recall"])
    home = tmp_path / "out" / "checkpoints"
    assert sorted(path.name for path in home.glob("step-*")) == [
        *("step-000004", "step-000010", "step-000012"),
    ]
    named = {"checkpoint": "step-000004", "step": 4, "validation": {"recall": 0.5}}
    assert json.loads((home / "best.json").read_text()) == named


def test_the_best_is_remembered_by_who_goes_on(make_checkpoints, tmp_path):
    module, optimizer = small(0)
    validations = {2: {"recall": 0.5}}
    with make_checkpoints(keep_checkpoints=1) as checkpoints:
        for step in (2, 4):
            checkpoints.save(step, module, optimizer, validations, lambda its: its["recall"])
    with make_checkpoints(keep_checkpoints=1) as checkpoints:
        assert checkpoints.restore(module, optimizer) == 4
        checkpoints.save(6, module, optimizer, validations, lambda its: its["recall"])
    steps = sorted(path.name for path in (tmp_path / "out" / "checkpoints").glob("step-*"))
    assert steps == ["step-000002", "step-000006"]


def test_what_a_kill_left_half_removed_or_half_written_goes(make_checkpoints, tmp_path):
    module, optimizer = small(0)
    for name in ("step-000002", "step-000008"):
        (tmp_path / "out" / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "out" / "checkpoints" / name / "weights.safetensors").touch()
    with make_checkpoints() as checkpoints:
        checkpoints.save(6, module, optimizer, {}, lambda its: 0.0)
    steps = [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()]
    assert steps == ["step-000006"]


# Saved in the background


def small(seed: int) -> tuple[torch.nn.Module, torch.optim.AdamW]:
    """A module that has been updated once."""
    torch.manual_seed(seed)
    module = torch.nn.Linear(3, 2)
    optimizer = make_optimizer(OptimizerConfig(), module)
    update_once(module, optimizer)
    return module, optimizer


def update_once(module: torch.nn.Module, optimizer: torch.optim.AdamW) -> None:
    optimizer.zero_grad()
    module(torch.ones(3)).square().sum().backward()
    optimizer.step()


@pytest.fixture
def make_checkpoints(tmp_path) -> Callable[..., Checkpoints]:
    """Checkpoints of a training in `out`: `make_checkpoints(**loop)`."""

    def make(**loop: int) -> Checkpoints:
        training = Training(
            folder=Folder.at(tmp_path / "out"),
            stage=1,
            lineage=Lineage("train-stage1", {}, (), {}),
            loop=LoopConfig(**loop),
            optimizer=OptimizerConfig(),
            make_learner=None,
            tokenizer=str,
        )
        return Checkpoints(training, {}, b"{}")

    return make


@pytest.fixture
def held(monkeypatch) -> threading.Event:
    """Whoever saves waits until it is set."""
    go_on = threading.Event()
    write = under_test.write_checkpoint

    def waits(*args):
        assert go_on.wait(60)
        return write(*args)

    monkeypatch.setattr(under_test, "write_checkpoint", waits)
    return go_on


def test_what_is_saved_is_copied_before_the_next_step(make_checkpoints, held):
    """The next step is over before the first byte is written."""
    module, optimizer = small(0)
    with make_checkpoints() as checkpoints:
        weights = module.weight.detach().clone()
        state = {key: value.clone() for key, value in optimizer.state[module.weight].items()}
        checkpoints.save(2, module, optimizer, {}, lambda its: 0.0)
        update_once(module, optimizer)
        assert not torch.equal(module.weight, weights)
        checkpoints.check()  # nothing to tell yet
        held.set()
        checkpoints.settle()
        other, its = small(1)
        assert checkpoints.restore(other, its) == 2
    assert torch.equal(other.weight, weights)
    for key, value in state.items():
        assert torch.equal(its.state[other.weight][key], value), key


def test_a_checkpoint_waits_for_the_one_before(make_checkpoints, held, tmp_path):
    module, optimizer = small(0)
    first = tmp_path / "out" / "checkpoints" / "step-000002" / "checkpoint.json"
    with make_checkpoints() as checkpoints:
        checkpoints.save(2, module, optimizer, {}, lambda its: 0.0)
        threading.Timer(0.3, held.set).start()
        assert not first.exists()
        checkpoints.save(4, module, optimizer, {}, lambda its: 0.0)
        assert first.exists()


def test_who_ends_saves_first(make_checkpoints, held):
    module, optimizer = small(0)
    with make_checkpoints() as checkpoints:
        checkpoints.save(2, module, optimizer, {}, lambda its: 0.0)
        threading.Timer(0.1, held.set).start()
    assert make_checkpoints().restore(module, optimizer) == 2


def test_a_checkpoint_that_cannot_be_saved_ends_the_training_in_a_line(
    tmp_path, stage1_command, rank_here, monkeypatch, refused, unbroken, read_training
):
    publish = Folder.publish

    def full(folder: Folder, file: str, content: bytes) -> None:
        if folder.name == "step-000008":
            raise ConfigError(f"{folder}: the disk is full; what was committed stays")
        publish(folder, file, content)

    command = stage1_command(tmp_path / "out")
    with rank_here():
        with monkeypatch.context() as patch:
            patch.setattr(Folder, "publish", full)
            assert "step-000008: the disk is full; what was committed stays" in refused(*command)
        assert run(*command) == 0
    assert read_training(tmp_path / "out") == read_training(unbroken)


# Those of a whole training


@pytest.mark.usefixtures("ray_session")
def test_the_last_checkpoints_are_kept_and_the_last_is_the_trainings(unbroken, steps_of):
    assert set(steps_of(unbroken)) >= {"step-000008", "step-000012"}
    whole = Checkpoint.open(str(unbroken))
    last = Checkpoint.open(str(unbroken / "checkpoints/step-000012"))
    assert (whole.stage, whole.step, whole.digest) == (1, 12, last.digest)
    earlier = Checkpoint.open(str(unbroken / "checkpoints/step-000008"))
    assert earlier.step == 8
    weights = [load_stage1(checkpoint).state_dict() for checkpoint in (whole, earlier)]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert {path.name for path in unbroken.iterdir() if not path.name.startswith(".")} == {
        *("checkpoint.json", "checkpoints", "config.yaml", "metrics.jsonl", "run.json"),
        "tensorboard",
    }


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "optimizer.safetensors", "checkpoint.json"]
)
def test_a_training_stopped_while_it_writes_a_checkpoint_goes_on_from_the_one_before(
    tmp_path, stage1_command, rank_here, monkeypatch, unbroken, read_training, name
):
    publish = Folder.publish

    def stop(folder: Folder, file: str, content: bytes) -> None:
        if folder.name == "step-000008" and file == name:
            raise KeyboardInterrupt
        publish(folder, file, content)

    command = stage1_command(tmp_path / "out")
    with rank_here():
        with monkeypatch.context() as patch:
            patch.setattr(Folder, "publish", stop)
            assert run(*command) == 130
        assert run(*command) == 0
    assert read_training(tmp_path / "out") == read_training(unbroken)
