"""Training as a user runs it: what it writes, what it refuses, and that a stop changes nothing.

Most runs have their one rank in this process (`rank_here`); those that take Ray Train say so.
"""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jobs import cli, train_stage1, training
from jobs.cli import main
from jobs.train_stage2 import Stage2Learner
from jobs.training import LoopConfig, Place
from model.checkpoint import Checkpoint
from model.checkpoint_models import load_stage1, load_stage2
from model.language_text import language_batch
from model.pretrained.digests import weights_digest
from model.pretrained.language_loading import load_language_model
from pipeline.dataset import Dataset
from pipeline.loader import Pairs
from pipeline.order import Order
from pipeline.storage import Folder
from pipeline.tombstones import add_tombstones

pytestmark = pytest.mark.usefixtures("ray_session")

LOSSES = {"loss", "itc", "itg", "itc_unsmoothed", "itg_unsmoothed"}
ITM = {"itm", "itm_accuracy"}
RATES = {"pairs_per_s", "data_wait_s", "time_left_s"}


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def steps_of(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.fixture
def disturb(monkeypatch) -> Callable:
    """Has something done in a rank before the losses of a step: `disturb(step, what)`.

    Everything is a local name: it travels to ranks in other processes by value.
    """

    def disturb(step: int, what: Callable[[], None]) -> None:
        class Disturbed(train_stage1.Stage1Learner):
            def losses(self, module, batch, at):
                if at == step:
                    what()
                return super().losses(module, batch, at)

        monkeypatch.setattr(train_stage1, "Stage1Learner", Disturbed)

    return disturb


@pytest.fixture
def no_ranks(monkeypatch) -> None:
    """Whoever starts ranks fails."""

    def fails(*_, **__):
        raise AssertionError("ranks were started")

    monkeypatch.setattr("ray.train.torch.TorchTrainer", fails)


# What it writes


def test_metrics_hold_a_line_a_window_and_one_a_validation(unbroken):
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


def test_the_loss_is_the_sum_of_those_that_have_joined(unbroken):
    for line in metrics(unbroken):
        joined = line.get("itm", 0.0)
        assert line["loss"] == pytest.approx(line["itc"] + line["itg"] + joined, rel=1e-5)
    first, *_, last = (line for line in metrics(unbroken) if line["split"] == "train")
    assert last["itg"] < first["itg"]


def test_rates_and_hardness_are_those_of_the_step(unbroken):
    lines = {line["step"]: line for line in metrics(unbroken) if line["split"] == "train"}
    rates = [lines[step]["learning_rate"] for step in range(1, 13)]
    falling = [1e-3 * (1 + math.cos(math.pi * at / 9)) for at in range(10)]
    assert rates == pytest.approx([1e-3, 2e-3, *falling], abs=1e-9)
    hardness = [lines[step]["itm_hardness"] for step in range(6, 13)]
    expected = [min(1.0, (step - 4.8) / 3.6) for step in range(5, 12)]
    assert hardness == pytest.approx(expected)


def test_tensorboard_shows_the_same(unbroken):
    board = EventAccumulator(str(unbroken / "tensorboard")).Reload()
    for split in ("train", "validation"):
        lines = [line for line in metrics(unbroken) if line["split"] == split]
        found = board.Scalars(f"{split}/loss")
        assert [event.step for event in found] == [line["step"] for line in lines]
        told = [line["loss"] for line in lines]
        assert [event.value for event in found] == pytest.approx(told)


def test_the_last_checkpoints_are_kept_and_the_last_is_the_trainings(unbroken, capsys, tmp_path):
    assert steps_of(unbroken) == ["step-000008", "step-000012"]
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


def test_a_line_is_the_mean_of_its_window_and_how_often_one_looks_changes_nothing(
    tmp_path, stage1_command, rank_here, unbroken
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
    tmp_path, data, stage1_command, rank_here, caplog
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


# Once more


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
        ("--threads", 2, "config.threads: 1 there, 2 now"),
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


def test_how_often_one_looks_belongs_to_no_lineage():
    place = Place(num_ranks=2, cuda=False, threads=1)
    loop = LoopConfig(log_every=5, validate_every=10, checkpoint_every=10)
    other = LoopConfig(log_every=1, validate_every=2, checkpoint_every=3, keep_checkpoints=9)
    assert place.lasting(loop) == place.lasting(other)
    names = {"steps", "batch_size", "seed", "compile", "ranks", "threads"}
    assert set(place.lasting(loop)) == names


# Stopped and begun again


@pytest.mark.parametrize("step", [2, 4, 6, 11])
def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(
    tmp_path, stage1_command, rank_here, disturb, monkeypatch, unbroken, read_training, capsys, step
):
    """Before the first checkpoint, at one, after ITM has joined, and at the last step."""

    def stop():
        raise KeyboardInterrupt

    command = stage1_command(tmp_path / "out")
    with rank_here():
        with monkeypatch.context():
            disturb(step, stop)
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


def test_a_training_stopped_between_its_last_step_and_its_end_only_ends(
    tmp_path, stage1_command, rank_here, monkeypatch, unbroken, read_training
):
    def stop(*_):
        raise KeyboardInterrupt

    command = stage1_command(tmp_path / "out")
    with rank_here():
        with monkeypatch.context() as patch:
            patch.setattr(training, "publish_last", stop)
            assert run(*command) == 130
        assert run(*command) == 0
    assert read_training(tmp_path / "out") == read_training(unbroken)


def test_a_line_that_was_cut_off_is_written_anew(
    tmp_path, stage1_command, rank_here, disturb, monkeypatch, unbroken, read_training
):
    def stop():
        raise KeyboardInterrupt

    command = stage1_command(tmp_path / "out")
    disturb(6, stop)
    with rank_here():
        assert run(*command) == 130
    monkeypatch.undo()
    with (tmp_path / "out" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "split": "train", "lo')
    with rank_here():
        assert run(*command) == 0
    assert read_training(tmp_path / "out") == read_training(unbroken)


def test_an_unfinished_training_with_another_option_is_refused_and_stays(
    tmp_path, stage1_command, rank_here, disturb, monkeypatch, unbroken, read_training, refused
):
    def stop():
        raise KeyboardInterrupt

    out = tmp_path / "out"
    disturb(5, stop)
    with rank_here():
        assert run(*stage1_command(out)) == 130
    monkeypatch.undo()
    line = refused(*stage1_command(out, "--seed", 1))
    assert "out: was begun otherwise (config.seed: 0 there, 1 now); choose another" in line
    with rank_here():
        assert run(*stage1_command(out)) == 0
    assert read_training(out) == read_training(unbroken)


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


def test_a_damaged_checkpoint_is_named_when_the_training_goes_on(
    tmp_path, stage1_command, rank_here, disturb, monkeypatch, refused
):
    command = stage1_command(tmp_path / "out")
    file = damaged(command, rank_here, disturb, monkeypatch)
    with rank_here():
        assert f"{file}: damaged: its digest differs" in refused(*command)


def damaged(command: list[object], rank_here, disturb, monkeypatch) -> Path:
    """Stop a training after its first checkpoint, and damage that; the file that has it."""

    def stop():
        raise KeyboardInterrupt

    disturb(5, stop)
    with rank_here():
        assert run(*command) == 130
    monkeypatch.undo()
    out = Path(str(command[command.index("--out") + 1]))
    file = out / "checkpoints" / "step-000004" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    return file


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
    tmp_path, stage1_command, rank_here, spoil, caplog
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

    monkeypatch.setattr(training, "later", later)
    guard = training._Guard(0)
    for step in range(6):
        now[0] = step
        guard.heed(torch.tensor(step in (1, 3, 4)))
        assert asked == list(range(step))
    now[0] += 1
    guard.settle()
    guard.settle()
    assert asked == list(range(6))


def test_three_in_a_row_end_it(tmp_path, stage1_command, rank_here, spoil, refused):
    spoil(5, 6, 7)
    with rank_here():
        line = refused(*stage1_command(tmp_path / "out"))
    assert "step 8: loss or gradient is not finite, the third time in a row" in line


def test_ranks_take_equal_parts_of_a_batch(monkeypatch):
    order = Order(40, 12, seed=5)
    monkeypatch.setattr(training.ranks, "num_ranks", lambda: 3)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(training.ranks, "rank", lambda rank=rank: rank)
        parts.append(training.mine(order.batch(4)))
    assert [len(part) for part in parts] == [4, 4, 4]
    np.testing.assert_array_equal(np.concatenate(parts), order.batch(4))


# With Ray Train


@pytest.mark.slow
def test_what_a_rank_cannot_mend_is_told_at_once_in_one_line(
    tmp_path, stage1_command, rank_here, disturb, monkeypatch
):
    """In a command of its own: what ranks print would come here at any time."""
    command = stage1_command(tmp_path / "out")
    file = damaged(command, rank_here, disturb, monkeypatch)
    words = [Path(sys.executable).with_name("viaduct"), *map(str, command)]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 2
    lines = [line for line in ended.stderr.splitlines() if line.startswith("viaduct")]
    assert lines == [f"viaduct train-stage1: {file}: damaged: its digest differs"]
    assert (ended.stdout + ended.stderr).count("its digest differs") == 1  # no traceback ends so
    assert "start again" not in ended.stderr


def test_two_ranks_give_the_losses_of_one(tmp_path, stage1_command, rank_here):
    options = ("--dropout", 0.0, "--itm-joins-at", 0.2, "--steps", 8)
    with rank_here():
        assert run(*stage1_command(tmp_path / "one", *options)) == 0
    assert run(*stage1_command(tmp_path / "two", *options, "--ranks", 2)) == 0
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for ours, theirs in zip(one, two, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - RATES - {"split"}:
            assert theirs[name] == pytest.approx(ours[name], rel=2e-3, abs=1e-4), name
    weights = [load_stage1(Checkpoint.open(str(tmp_path / n))).state_dict() for n in ("one", "two")]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=2e-3, msg=name)


# Stage 2


def test_stage_2_tells_its_loss_and_learns(stage2):
    lines = metrics(stage2)
    told = [line for line in lines if line["split"] == "train"]
    assert [line["step"] for line in told] == list(range(1, 9))
    for line in told:
        names = {"loss", "learning_rate", "gradient_norm"} | RATES
        assert set(line) - {"step", "split", "perplexity"} == names
    assert told[-1]["loss"] < told[0]["loss"]
    validations = [line for line in lines if line["split"] == "validation"]
    assert [line["step"] for line in validations] == [4, 8]
    for line in validations:
        assert set(line) == {"step", "split", "loss", "perplexity"}
        assert line["perplexity"] == pytest.approx(math.exp(line["loss"]), rel=1e-4)


def test_stage_2_names_stage_1_and_the_language_model(stage2, unbroken, language_folder):
    checkpoint = Checkpoint.open(str(stage2), 2)
    frozen = checkpoint.lineage.frozen
    assert frozen["stage1"] == {"digest": Checkpoint.open(str(unbroken)).digest}
    assert frozen["language_model"]["name"] == f"hf:{language_folder}"
    _, language = load_stage2(checkpoint)
    assert frozen["language_model"]["weights_digest"] == weights_digest(language.model)
    assert not any("language" in name for name in checkpoint.tensors())


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_stage_2_that_was_stopped_goes_on_as_if_it_had_not_been(
    tmp_path, stage2_command, stage2, t5_folder, rank_here, monkeypatch, read_training, family
):
    """Also where captions are split by chance, for T5."""
    from jobs import train_stage2

    class Stopped(train_stage2.Stage2Learner):
        def losses(self, module, batch, step):
            if step == 6:
                raise KeyboardInterrupt
            return super().losses(module, batch, step)

    t5 = ("--language-model", f"hf:{t5_folder}")
    options = ("--prompt", "picture") if family == "llama" else t5
    command = stage2_command(tmp_path / "out", *options)
    with rank_here():
        with monkeypatch.context() as patch:
            patch.setattr(train_stage2, "Stage2Learner", Stopped)
            assert run(*command) == 130
        assert run(*command) == 0
        whole = stage2
        if family == "t5":
            whole = tmp_path / "whole"
            assert run(*stage2_command(whole, *options)) == 0
    assert read_training(tmp_path / "out") == read_training(whole)


def test_stage_2_splits_captions_by_seed_and_step(data, unbroken, stage2_command, t5_folder):
    t5 = f"hf:{t5_folder}"
    command = stage2_command(Path("nowhere"), "--language-model", t5, "--seed", 5)
    job = cli._parse(str(command[0]), [str(word) for word in command[1:]])
    features, captions = (Dataset.open(str(data / name)) for name in ("features", "pairs"))
    stage1 = Checkpoint.open(str(unbroken))
    learner = Stage2Learner(job, stage1, features, captions, "", torch.device("cpu"))
    pairs = Pairs(features, captions, "train")
    order = Order(len(pairs), 8, seed=5)
    for step in (3, 0):
        expected = language_batch(
            load_language_model(t5),
            pairs.batch(order.batch(step), order.caption_draw(step)).texts,
            prompt="",
            max_tokens=24,
            split_draw=order.split_draw(step).tolist(),
        )
        found = learner.batch(step)
        for ours, theirs in zip((found.ids, found.present, found.targets), expected, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.slow
def test_two_ranks_train_stage_2(tmp_path, stage1_command, stage2_command, rank_here):
    """By Ray Train; captions differ in length, so that ranks hold other numbers of tokens."""
    options = ("--checkpoint", tmp_path / "stage1")
    with rank_here():
        assert run(*stage1_command(tmp_path / "stage1", "--dropout", 0.0, "--steps", 2)) == 0
        assert run(*stage2_command(tmp_path / "one", *options)) == 0
    assert run(*stage2_command(tmp_path / "two", *options, "--ranks", 2)) == 0
    one, two = ([line["loss"] for line in metrics(tmp_path / name)] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--language-model", "hf:/nowhere"], "language_model: hf:/nowhere cannot be had"),
        (["--language-model", "magic"], "language_model: 'magic' is neither"),
        (["--max-language-tokens", 3], "max_language_tokens: 3 is less than 4"),
        (["--checkpoint", "/nowhere"], "/nowhere: no such folder"),
        (["--batch-size", 100], "batch_size: 100, but there are"),
        (["--prompt", "a " * 40], "max_language_tokens: 24 leaves no room"),
        (["--max-language-tokens", 61], "max_language_tokens: 4 queries and 61 tokens of text are"),
    ],
)
def test_wrong_input_of_stage_2_is_one_line(
    tmp_path, stage2_command, no_ranks, refused, options, told
):
    assert told in refused(*stage2_command(tmp_path / "out", *options))
    assert not (tmp_path / "out").exists()


def test_stage_2_needs_a_checkpoint_of_stage_1_and_features_of_its_encoder(
    tmp_path, data, stage2_command, stage2, no_ranks, refused, rename_encoder
):
    line = refused(*stage2_command(tmp_path / "out", "--checkpoint", stage2))
    assert "is of stage 2; stage 1 is needed" in line
    shutil.copytree(data / "features", tmp_path / "features")
    rename_encoder(tmp_path / "features")
    line = refused(*stage2_command(tmp_path / "out", "--features", tmp_path / "features"))
    assert f"{tmp_path}/features: has features of another encoder than" in line
    assert "name timm:other there, not timm:vit_tiny_patch16_224" in line
