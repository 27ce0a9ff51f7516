"""Stage 1 from the checkpoint of another training, by some of its losses."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from jobs.cli import main
from jobs.train_stage1 import Stage1Learner
from jobs.training import LoopConfig, MicroBatches, TrainingData
from model.checkpoint import Checkpoint
from model.checkpoint_models import load_stage1
from model.objectives import ObjectivesConfig
from pipeline.order import OrderConfig

pytestmark = pytest.mark.usefixtures("ray_session")

HARD_AT_ONCE = ("--itm-joins-at", 0, "--itm-hardens-until", 0)
CAPTIONER = ("--losses", "itg")
JUDGE = ("--losses", "itm,itc", *HARD_AT_ONCE)


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, tune_command, rank_here):
    """The folder of a training from `unbroken` with these options, made once."""
    made: dict[tuple, Path] = {}

    def tuned(*options: object) -> Path:
        if options not in made:
            made[options] = tmp_path_factory.mktemp("tuned") / "stage1"
            with rank_here():
                assert run(*tune_command(made[options], *options)) == 0
        return made[options]

    return tuned


@pytest.mark.parametrize("losses", ["itc,itm,itg", "itc,itm", "itg"])
def test_it_begins_with_the_losses_of_the_checkpoint(tuned, data, unbroken, metrics, losses):
    once = ("--steps", 1, "--dropout", 0.0, *HARD_AT_ONCE)
    found, _ = metrics(tuned(*once, "--losses", losses))
    opened = TrainingData.open(
        [str(data / "features")], [str(data / "pairs")], (), OrderConfig(shuffle="full")
    )
    pairs = MicroBatches(opened, LoopConfig(steps=1, batch_size=8))
    batch, uniform = pairs.of_this_rank(0), torch.from_numpy(pairs.order.negative_draw(0))
    stage1 = load_stage1(Checkpoint.open(str(unbroken)))
    shaped = stage1.batch(batch.tokens, batch.texts, batch.picture, batch.caption)
    with torch.no_grad():
        expected = stage1(
            shaped, ObjectivesConfig(losses=losses), 1.0 if "itc" in losses else None, uniform
        )
    assert {"itc", "itm", "itg"} & found.keys() == set(losses.split(","))
    for name, value in expected.items():
        assert found[name] == pytest.approx(value.item(), rel=1e-6), name


@pytest.mark.parametrize(
    ("options", "still"),
    [
        (
            CAPTIONER,
            {
                *("temperature", "vision_proj.weight", "vision_proj.bias"),
                *("text_proj.weight", "text_proj.bias", "itm_head.weight", "itm_head.bias"),
            },
        ),
        (JUDGE, {f"qformer.head.{part}" for part in ("dense", "norm")} | {"qformer.head.bias"}),
    ],
)
def test_what_none_of_its_losses_reads_stays_as_it_was(tuned, unbroken, options, still):
    before, after = (Checkpoint.open(str(home)).tensors() for home in (unbroken, tuned(*options)))
    assert before.keys() == after.keys()
    found = {name for name, value in before.items() if torch.equal(value, after[name])}
    last = "qformer.layers.1.query_feed_forward."  # which nothing that is written sees
    assert {name for name in found if not name.startswith(last)} == {
        name for name in before if name.startswith(tuple(still))
    }
    assert any(name.startswith(last) for name in found) == (options == CAPTIONER)


def test_size_and_tokenizer_are_the_checkpoints(tuned, unbroken):
    before, after = (Checkpoint.open(str(home)) for home in (unbroken, tuned(*CAPTIONER)))
    assert after.config == before.config
    assert after.files["tokenizer"]["digest"] == before.files["tokenizer"]["digest"]
    changed = Checkpoint.open(str(tuned(*CAPTIONER, "--max-text-tokens", 9, "--steps", 1)))
    assert changed.config == before.config | {"max_text_tokens": 9}


def test_the_lineage_names_the_checkpoint_and_the_losses(tuned, unbroken):
    before = Checkpoint.open(str(unbroken))
    lineage = Checkpoint.open(str(tuned(*JUDGE))).lineage
    assert lineage.frozen == {
        "encoder": before.lineage.frozen["encoder"],
        "init": {"digest": before.digest},
    }
    assert lineage.parents == before.lineage.parents
    assert lineage.config["losses"] == "itc,itm"
    assert not {"start", "width", "num_queries", "init"} & lineage.config.keys()
    # Where nothing is left out it says what it said before there was a choice.
    assert not {"losses", "init"} & before.lineage.config.keys()


def test_the_best_is_by_what_there_is(tuned, metrics):
    captioner, judge = tuned(*CAPTIONER), tuned(*JUDGE)
    lines = {line["step"]: line for line in metrics(captioner) if line["split"] == "validation"}
    assert all(
        line.keys() == {"step", "split", "loss", "itg", "itg_unsmoothed"} for line in lines.values()
    )
    best = json.loads((captioner / "checkpoints" / "best.json").read_text())
    assert best["validation"]["itg"] == min(line["itg"] for line in lines.values())
    measured = metrics(judge)[-1]
    assert {"recall_at_1_picture_to_text", "itm_accuracy"} < measured.keys()
    assert "itg" not in measured

    def merit(**measured: float) -> float:
        return Stage1Learner.merit(None, measured)

    recalls = {"recall_at_1_picture_to_text": 0.5, "recall_at_1_text_to_picture": 0.25}
    assert merit(**recalls, itm_accuracy=0.9, itg=3.0) == 0.75
    assert merit(itm=0.4, itm_accuracy=0.9, itg=3.0) == 0.9
    assert merit(loss=3.0, itg=3.0, itg_unsmoothed=2.0) == -3.0


@pytest.mark.parametrize("step", [2, 6])
def test_it_goes_on_as_if_it_had_not_been_stopped(
    tmp_path, tuned, tune_command, rank_here, stop_at, monkeypatch, read_training, step
):
    unbroken, command = tuned(*CAPTIONER), tune_command(tmp_path / "out", *CAPTIONER)
    stop_at(step)
    with rank_here():
        assert run(*command) == 130
    monkeypatch.undo()
    with rank_here():
        assert run(*command) == 0
    assert read_training(tmp_path / "out") == read_training(unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("options", [CAPTIONER, JUDGE])
def test_two_ranks_give_the_losses_of_one(tmp_path, tuned, tune_command, metrics, options):
    options = (*options, "--dropout", 0.0, "--steps", 4)
    assert run(*tune_command(tmp_path / "two", *options, "--ranks", 2)) == 0
    one, two = (metrics(home) for home in (tuned(*options), tmp_path / "two"))
    for ours, theirs in zip(one, two, strict=True):
        for name in ours.keys() & {"loss", "itc", "itm", "itg", "gradient_norm", "temperature"}:
            assert theirs[name] == pytest.approx(ours[name], rel=2e-3), name
    weights = [Checkpoint.open(str(home)).tensors() for home in (tuned(*options), tmp_path / "two")]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=2e-3, msg=name)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--start", "scratch"], "start: scratch, but init="),
        (["--num-queries", 4], "num_queries: 4, but init="),
        (["--max-text-tokens", 33], "max_text_tokens: 33, but max_positions=32"),
        (["--init", "/nowhere"], "/nowhere: no such folder"),
        (["--losses", "itc,itx"], "losses: 'itc,itx' is no list of itc, itm, itg"),
        (["--losses", "itm"], "losses: itm: none is there at the first step (itm_joins_at=0.4)"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, tune_command, no_ranks, refused, options, told):
    assert told in refused(*tune_command(tmp_path / "out", *options))
    assert not (tmp_path / "out").exists()


def test_features_of_another_encoder_are_refused(
    tmp_path, data, tune_command, no_ranks, refused, rename_encoder, unbroken
):
    shutil.copytree(data / "features", tmp_path / "features")
    rename_encoder(tmp_path / "features")
    line = refused(*tune_command(tmp_path / "out", "--features", tmp_path / "features"))
    assert f"has features of another encoder than {unbroken} was trained on: name" in line


def test_another_checkpoint_or_other_losses_in_the_same_folder_are_refused(
    tuned, tune_command, no_ranks, refused
):
    captioner = tuned(*CAPTIONER)
    line = refused(*tune_command(captioner, *CAPTIONER, "--init", tuned(*JUDGE)))
    assert "was trained otherwise (frozen.init.digest: " in line
    line = refused(*tune_command(captioner, "--losses", "itg,itc"))
    assert '(config.losses: "itg" there, "itc,itg" now)' in line
