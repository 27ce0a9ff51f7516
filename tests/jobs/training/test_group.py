"""Ranks that fail are started again; two give the losses of one."""

import json
import os
from pathlib import Path

import pytest
import ray
import ray.train.torch
import torch
from ray.train.v2._internal.constants import get_env_vars_to_propagate

from jobs import capacity
from jobs.cli import main
from jobs.training import group
from jobs.training.config import LoopConfig
from model.checkpoint import Checkpoint
from model.checkpoint_models import load_stage1

pytestmark = pytest.mark.usefixtures("ray_session")


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("nodes", "ranks", "threads"),
    [([2], 1, 2), ([1, 1], 1, 1), ([1, 1], 2, 1), ([16, 8], 2, 8), ([0, 16, 3], 4, 4)],
)
def test_ranks_share_the_cores_as_far_as_the_nodes_hold_them(monkeypatch, nodes, ranks, threads):
    monkeypatch.setattr(capacity, "_nodes", lambda: [{"CPU": float(cores)} for cores in nodes])
    monkeypatch.setattr(group.ray, "cluster_resources", lambda: {"CPU": sum(nodes)})
    monkeypatch.setattr(group, "await_room", lambda each, count: None)
    place = group.prepare(group.RanksConfig(ranks=ranks, device="cpu"), LoopConfig(batch_size=8))
    assert (place.num_ranks, place.threads) == (ranks, threads)


RATES = {"step_s", "pairs_per_s", "data_wait_s", "time_left_s"}


def test_ranks_that_fail_are_started_again_and_nothing_is_lost(
    tmp_path, stage1_command, rank_here, disturb, unbroken, read_training
):
    """tests/jobs/test_kill_training.py kills one."""
    failed = tmp_path / "failed"

    def fail():
        if not failed.exists():
            failed.touch()
            raise RuntimeError("connection closed by peer")

    disturb(6, fail)
    with rank_here():
        assert run(*stage1_command(tmp_path / "out")) == 0
    assert failed.exists()
    assert read_training(tmp_path / "out") == read_training(unbroken)
    (ran,) = json.loads((tmp_path / "out/run.json").read_text())["runs"]
    assert ran["phases"][0]["failures"] == 1


def test_ranks_that_keep_failing_are_given_up(tmp_path, stage1_command, rank_here, disturb, capsys):
    tries = tmp_path / "tries"
    tries.touch()

    def fail():
        tries.write_text(tries.read_text() + "x")
        raise RuntimeError("connection closed by peer")

    disturb(1, fail)
    with rank_here():
        assert run(*stage1_command(tmp_path / "out", "--restarts", 2)) == 1
    assert tries.read_text() == "xxx"
    expected = "viaduct train-stage1: training failed: connection closed by peer"
    assert capsys.readouterr().err.splitlines()[-1] == expected


def test_ray_trains_own_actors_are_told_their_cluster(
    tmp_path, stage1_command, rank_here, monkeypatch
):
    """Where there are several on a machine they would take another one's word."""
    told = []
    with rank_here():
        fit = ray.train.torch.TorchTrainer.fit

        def telling(trainer) -> None:
            told.append(get_env_vars_to_propagate())
            fit(trainer)

        monkeypatch.setattr(ray.train.torch.TorchTrainer, "fit", telling)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        assert run(*stage1_command(tmp_path / "out", "--steps", 1)) == 0
    assert [its["RAY_ADDRESS"] for its in told] == [ray.get_runtime_context().gcs_address]
    assert "RAY_ADDRESS" not in os.environ


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_ranks_give_the_losses_of_one(tmp_path, stage1_command, rank_here, metrics, accumulate):
    options = ("--dropout", 0.0, "--itm-joins-at", 0.2, "--steps", 8, "--accumulate", accumulate)
    with rank_here():
        assert run(*stage1_command(tmp_path / "one", *options)) == 0
    assert run(*stage1_command(tmp_path / "two", *options, "--ranks", 2)) == 0
    assert_alike(tmp_path / "one", tmp_path / "two", metrics)


@pytest.mark.slow
def test_a_training_goes_on_with_another_number_of_ranks(
    tmp_path, stage1_command, rank_here, stop_at, metrics, monkeypatch
):
    options = ("--dropout", 0.0, "--itm-joins-at", 0.2, "--steps", 8)
    with rank_here():
        assert run(*stage1_command(tmp_path / "one", *options)) == 0
        stop_at(5)
        assert run(*stage1_command(tmp_path / "two", *options)) == 130
        monkeypatch.undo()
    assert run(*stage1_command(tmp_path / "two", *options, "--ranks", 2)) == 0
    assert_alike(tmp_path / "one", tmp_path / "two", metrics)
    runs = json.loads((tmp_path / "two/run.json").read_text())["runs"]
    assert [its["phases"][0]["ranks"] for its in runs] == [1, 2]


def assert_alike(one: Path, two: Path, metrics) -> None:
    """Two trainings have the same losses and weights, but for their last bits."""
    lines = metrics(one), metrics(two)
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
    for ours, theirs in zip(*lines, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - RATES - {"split"}:
            assert theirs[name] == pytest.approx(ours[name], rel=2e-3, abs=1e-4), name
    weights = [load_stage1(Checkpoint.open(str(folder))).state_dict() for folder in (one, two)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=2e-3, msg=name)
