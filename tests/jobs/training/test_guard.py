"""Updates that are not finite: skipped, told a step later, named, ended."""

import json
import math
from collections.abc import Callable

import pytest
import torch

from jobs import train_stage1
from jobs.cli import main
from jobs.training import guard
from model.checkpoint import Checkpoint
from pipeline.dataset import Dataset

pytestmark = pytest.mark.usefixtures("ray_session")


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_a_loss_that_is_not_finite_ends_it_and_is_not_tried_again(
    tmp_path, stage1_command, rank_here, disturb, capsys
):
    """Each try would come to the same end."""
    tries = tmp_path / "tries"
    tries.touch()

    def count():
        tries.write_text(tries.read_text() + "x")

    disturb(0, count)
    with rank_here():
        assert run(*stage1_command(tmp_path / "out", "--learning-rate", 1e30)) == 2
    assert "go on from the last checkpoint with a lower learning_rate" in capsys.readouterr().err
    assert tries.read_text() == "x"


@pytest.fixture
def spoil(monkeypatch) -> Callable:
    """Has the loss of some steps be NaN."""

    def spoil(*steps: int) -> None:
        class Spoiled(train_stage1.Stage1Learner):
            def losses(self, module, batch, at):
                found = super().losses(module, batch, at)
                spoiled = {"loss": found["loss"] * math.nan} if at in steps else {}
                return found | spoiled

        monkeypatch.setattr(train_stage1, "Stage1Learner", Spoiled)

    return spoil


def test_updates_that_are_not_finite_are_skipped_and_counted(
    tmp_path, stage1_command, rank_here, spoil, caplog, metrics
):
    spoil(3, 4, 6, 7)
    with rank_here():
        assert run(*stage1_command(tmp_path / "out", "--log-every", 4)) == 0
    told = [text for text in caplog.messages if "skipped" in text]
    assert [text.split()[0] for text in told] == ["step=4", "step=5", "step=7", "step=8"]
    lines = [line for line in metrics(tmp_path / "out") if line["split"] == "train"]
    assert [line.get("skipped_updates", 0) for line in lines] == [1, 3, 0]
    assert all(math.isfinite(value) for line in lines for value in list(line.values())[2:])
    weights = Checkpoint.open(str(tmp_path / "out")).tensors()
    assert all(value.isfinite().all() for value in weights.values())


def test_the_pairs_of_skipped_updates_are_named_in_a_file(
    tmp_path, data, stage1_command, rank_here, spoil, unbroken
):
    spoil(3, 4, 7)
    with rank_here():
        assert run(*stage1_command(tmp_path / "out")) == 0
    text = (tmp_path / "out" / "not_finite.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["step"] for line in lines] == [4] * 8 + [5] * 8 + [8] * 8
    columns = Dataset.open(str(data / "pairs")).shards()
    rows = {row["uid"].hex(): row for shard in columns for row in shard.table.to_pylist()}
    for line in lines:
        row = rows[line["uid"]]
        assert row["split"] == "train"
        assert line["caption"] in [caption["text"] for caption in row["captions"]]
    assert len({line["uid"] for line in lines[:8]}) == 8
    assert not (unbroken / "not_finite.jsonl").exists()


def test_no_step_waits_to_hear_whether_its_own_update_was_skipped(monkeypatch):
    """The device gets there later: a flag that is asked in its own step fails."""
    now, asked = [0], []

    def later(flag: torch.Tensor) -> Callable[[], bool]:
        own = now[0]

        def ask() -> bool:
            assert now[0] > own, f"step {own} waits"
            asked.append(own)
            return bool(flag)

        return ask

    monkeypatch.setattr(guard, "later", later)
    named = []
    under_test = guard.Guard(0, named.append)
    for step in range(6):
        now[0] = step
        under_test.heed(torch.tensor(step in (1, 3, 4)))
        assert asked == list(range(step))
    now[0] += 1
    under_test.settle()
    under_test.settle()
    assert asked == list(range(6))
    assert named == [1, 3, 4]


def test_no_step_of_a_whole_training_waits_to_hear_of_its_own_update(
    tmp_path, stage1_command, rank_here, monkeypatch
):
    """But the last one, and those that are validated or saved."""
    now, asked = [-1], []
    losses = train_stage1.Stage1Learner.losses

    def later(flag: torch.Tensor) -> Callable[[], bool]:
        own = now[0]

        def ask() -> bool:
            asked.append((own, now[0]))
            return bool(flag)

        return ask

    def watched(learner, module, batch, number):
        now[0] = number
        return losses(learner, module, batch, number)

    monkeypatch.setattr(guard, "later", later)
    monkeypatch.setattr(train_stage1.Stage1Learner, "losses", watched)
    seldom = ("--log-every", 2, "--validate-every", 8, "--checkpoint-every", 6)
    with rank_here():
        assert run(*stage1_command(tmp_path / "out", *seldom)) == 0
    assert asked == [(step, step if step in (5, 7, 11) else step + 1) for step in range(12)]


def test_three_in_a_row_end_it(tmp_path, stage1_command, rank_here, spoil, refused):
    spoil(5, 6, 7)
    with rank_here():
        line = refused(*stage1_command(tmp_path / "out"))
    assert "step 8: loss or gradient is not finite, the third time in a row" in line
    assert "(not_finite.jsonl names the pairs); go on from the last checkpoint with a lower" in line
