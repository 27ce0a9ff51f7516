"""Stage 1 as a user trains it: its losses, its lineage, what it refuses."""

import json
import logging
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.cli import main
from jobs.train_stage1 import Stage1Learner, TrainStage1
from jobs.training import LoopConfig, TrainingData
from model.checkpoint import Checkpoint
from model.checkpoint_models import load_stage1
from model.start import StartConfig, start_tokenizer
from pipeline.dataset import Dataset
from pipeline.loader import Pairs
from pipeline.order import OrderConfig
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


def test_the_lineage_holds_the_schedule_that_a_default_stands_for(data, tmp_path):
    where = {"features": (str(data / "features"),), "captions": (str(data / "pairs"),)}
    opened = TrainingData.open(*where.values(), (), OrderConfig())
    for steps, schedule in ((300, (0.4, 1.0)), (250_000, (0.0, 0.0))):
        start = StartConfig(start="scratch")
        job = TrainStage1(**where, out=str(tmp_path), start=start, loop=LoopConfig(steps=steps))
        config = job._lineage(opened).config
        assert (config["itm_joins_at"], config["itm_hardens_until"]) == schedule


def test_the_pairs_that_are_named_are_those_of_the_batch(data, bert_folder, tmp_path):
    features = Dataset.open(str(data / "features"))
    job = TrainStage1(
        features=(str(data / "features"),),
        captions=(str(data / "pairs"),),
        out=str(tmp_path),
        start=StartConfig(start=f"hf:{bert_folder}", max_text_tokens=12),
        loop=LoopConfig(batch_size=8, seed=3),
    )
    tokenizer = start_tokenizer(job.start, [])
    cpu = torch.device("cpu")
    opened = TrainingData.open(job.features, job.captions, job.mix, job.order)
    learner = Stage1Learner(job, opened, tokenizer.to_json(), cpu)
    rows = {}
    for number in features.records:
        shard = features.shard(number)
        tokens = shard.table.column("tokens").combine_chunks().to_numpy_ndarray()
        uids = shard.table.column("uid").to_pylist()
        rows |= {uid.hex(): row for uid, row in zip(uids, tokens, strict=True)}
    for number in (0, 5):
        batch, named = learner.batch(number), learner.named(number)
        ids, _ = tokenizer.encode([pair["caption"] for pair in named], 12)
        assert torch.equal(batch.texts.ids, ids)
        for pair, tokens in zip(named, batch.tokens.numpy(), strict=True):
            np.testing.assert_array_equal(rows[pair["uid"]], tokens)


def test_validation_measures_recall_by_itc_alone(unbroken, data, metrics):
    """Counted one by one: is a picture's best caption its own, a caption's best picture its own?"""
    features, pairs = (Dataset.open(str(data / name)) for name in ("features", "pairs"))
    held_out = Pairs(features, pairs, "validation")
    pictures = np.arange(len(held_out))
    stage1 = load_stage1(Checkpoint.open(str(unbroken)))
    texts = held_out.texts(pictures)
    owners = [picture for picture in pictures for _ in texts[picture]]
    words = stage1.embed_texts([text for its in texts for text in its])
    queries = stage1.embed_pictures(held_out.tokens(pictures))
    sims = torch.stack([(words @ query.T).amax(dim=1) for query in queries])
    of_pictures = np.mean([owners[row.argmax()] == at for at, row in enumerate(sims)])
    of_texts = np.mean([row.argmax() == owner for owner, row in zip(owners, sims.T, strict=True)])
    told = metrics(unbroken)[-1]
    assert (told["split"], told["step"]) == ("validation", 12)
    assert told["recall_at_1_picture_to_text"] == pytest.approx(of_pictures)
    assert told["recall_at_1_text_to_picture"] == pytest.approx(of_texts)


MICRO = ("--steps", 6, "--batch-size", 16, "--accumulate", 2)
"""Updates of two micro-batches of eight pairs."""


@pytest.fixture(scope="module")
def accumulated(tmp_path_factory, stage1_command, rank_here) -> Path:
    """The folder of a training whose updates are made of two micro-batches."""
    out = tmp_path_factory.mktemp("accumulated") / "stage1"
    with rank_here():
        assert run(*stage1_command(out, *MICRO)) == 0
    return out


def test_schedules_go_by_updates_and_not_by_micro_batches(accumulated, metrics):
    lines = [line for line in metrics(accumulated) if line["split"] == "train"]
    assert [line["step"] for line in lines] == list(range(1, 7))
    assert ["itm" in line for line in lines] == [False] * 3 + [True] * 3
    assert lines[1]["learning_rate"] == pytest.approx(2e-3)  # the peak, at the end of the warm-up
    for line in lines:
        assert line["loss"] == pytest.approx(line["itc"] + line["itg"] + line.get("itm", 0.0))


@pytest.mark.parametrize("number", [9, 10])
def test_a_training_that_was_stopped_between_micro_batches_goes_on_as_if_it_had_not_been(
    tmp_path, stage1_command, rank_here, stop_at, monkeypatch, accumulated, read_training, number
):
    """Within an update, and between two."""

    command = stage1_command(tmp_path / "out", *MICRO)
    stop_at(number)
    with rank_here():
        assert run(*command) == 130
    monkeypatch.undo()
    with rank_here():
        assert run(*command) == 0
    assert read_training(tmp_path / "out") == read_training(accumulated)


def test_in_bf16_it_trains_to_nearly_the_same_losses(
    tmp_path, stage1_command, rank_here, unbroken, metrics
):
    options = ("--steps", 3, "--validate-every", 3, "--checkpoint-every", 3, "--dropout", 0.0)
    with rank_here():
        for precision in ("fp32", "bf16"):
            command = stage1_command(tmp_path / precision, *options, "--precision", precision)
            assert run(*command) == 0
    exact, rounded = (metrics(tmp_path / precision)[0] for precision in ("fp32", "bf16"))
    assert rounded["loss"] != exact["loss"]
    for name in ("loss", "itc", "itg"):
        assert rounded[name] == pytest.approx(exact[name], rel=0.02), name
    weights = Checkpoint.open(str(tmp_path / "bf16")).tensors()
    assert {value.dtype for value in weights.values()} == {torch.float32}


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


def test_pictures_without_a_caption_are_counted_as_it_begins(
    tmp_path, data, stage1_command, rank_here, caplog
):
    shards = Dataset.open(str(data / "pairs")).shards()
    train = [r for s in shards for r in s.table.to_pylist() if r["split"] == "train"]
    told = sum(any(c["status"] == "kept" for c in row["captions"]) for row in train)
    assert 0 < told < len(train)
    with rank_here(), caplog.at_level(logging.INFO):
        assert run(*stage1_command(tmp_path / "out", "--steps", 2)) == 0
    said = [one.getMessage() for one in caplog.records if one.name == "jobs.training.data"]
    assert said == [f"trains on pictures={told} without_caption={len(train) - told}"]


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
