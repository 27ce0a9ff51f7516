"""Stage 2 as a user trains it: its loss, its captions, its lineage, what it refuses."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jobs import cli
from jobs.cli import main
from jobs.train_stage2 import Stage2Learner
from jobs.training import TrainingData
from jobs.training.updates import Updates
from model.checkpoint import Checkpoint
from model.checkpoint_frozen import load_stage2
from model.generation.settings import GenerationConfig
from model.generation.stage2 import write_texts
from model.language_text import IGNORED, language_batch, prompt_ids
from model.pretrained.digests import weights_digest
from model.pretrained.language_loading import load_language_model
from model.stage2 import Stage2Batch
from pipeline.dataset import Dataset
from pipeline.loader import Pairs
from pipeline.order import Order

pytestmark = pytest.mark.usefixtures("ray_session")


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


RATES = {"step_s", "pairs_per_s", "data_wait_s", "time_left_s"}


def test_stage_2_tells_its_loss_and_learns(stage2, metrics):
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


def make_learner(command: list[object], stage1: Path) -> Stage2Learner:
    """What a command trains, in this process."""
    job = cli.parse(str(command[0]), [str(word) for word in command[1:]])
    opened = TrainingData.open(job.features, job.captions, job.mix, job.order)
    checkpoint = Checkpoint.open(str(stage1))
    return Stage2Learner(job, checkpoint, opened, "", torch.device("cpu"))


def test_micro_batches_make_the_update_of_one_large_batch(data, unbroken, stage2_command):
    """Captions differ in length, so that micro-batches hold other numbers of tokens."""
    command = stage2_command(Path("nowhere"), "--batch-size", 12)
    one, several = (make_learner(command, unbroken) for _ in range(2))
    batch = one.batch(0)
    parts = [
        Stage2Batch(*(value[rows] for value in vars(batch).values()))
        for rows in (slice(0, 4), slice(4, 8), slice(8, 12))
    ]
    counts = {int((part.targets != IGNORED).sum()) for part in parts}
    assert len(counts) > 1
    large = Updates(one, one._job.loop, one._job.optimizer, torch.device("cpu"))
    loop = replace(one._job.loop, accumulate=3)
    small = Updates(several, loop, one._job.optimizer, torch.device("cpu"))
    for learner in (one, several):
        learner.module.eval()  # dropout would draw otherwise for other batches
    for step in range(2):
        expected, _ = large.make(step, iter([batch]))
        found, _ = small.make(step, iter(parts))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=0, msg=name)
    for name, weight in one.module.state_dict().items():
        torch.testing.assert_close(several.module.state_dict()[name], weight, rtol=0, atol=1e-4)


def test_a_few_held_out_captions_are_written_at_each_validation(stage2, data):
    text = (stage2 / "validation_captions.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["step"] for line in lines] == [4] * 4 + [8] * 4
    features, captions = (Dataset.open(str(data / name)) for name in ("features", "pairs"))
    held_out = Pairs(features, captions, "validation")
    stage2_, language = load_stage2(Checkpoint.open(str(stage2)))
    room = 24 - len(prompt_ids(language, "picture"))
    greedy = GenerationConfig(method="greedy", min_tokens=1, max_tokens=room)
    written = write_texts(stage2_, language, held_out.tokens(range(4)), "picture", greedy)
    assert [[line["written"]] for line in lines[4:]] == written
    assert [line["caption"] for line in lines[4:]] == [
        its[0] for its in held_out.texts(np.arange(4))
    ]
    board = EventAccumulator(str(stage2 / "tensorboard")).Reload()
    shown = board.Tensors("validation/captions/text_summary")
    assert [event.step for event in shown] == [4, 8]
    table = shown[1].tensor_proto.string_val[0].decode()
    assert all(line["uid"] in table and line["written"] in table for line in lines[4:])


def test_stage_2_splits_captions_by_seed_and_step(data, unbroken, stage2_command, t5_folder):
    t5 = f"hf:{t5_folder}"
    command = stage2_command(Path("nowhere"), "--language-model", t5, "--seed", 5)
    learner = make_learner(command, unbroken)
    features, captions = (Dataset.open(str(data / name)) for name in ("features", "pairs"))
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
def test_two_ranks_train_stage_2(tmp_path, stage1_command, stage2_command, rank_here, metrics):
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
