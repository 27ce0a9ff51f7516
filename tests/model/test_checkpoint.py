"""Checkpoints come back whole, and say what is damaged."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.checkpoint import (
    Checkpoint,
    kept_steps,
    publish_last,
    step_folder,
    write_checkpoint,
)
from model.checkpoint_models import load_stage1
from pipeline.errors import ConfigError, DatasetError
from pipeline.storage import Folder


@pytest.fixture(scope="module")
def stage1(scattered_stage1):
    return scattered_stage1().eval()


@pytest.fixture
def written(tmp_path, stage1, save_checkpoint):
    return save_checkpoint(tmp_path / "one", stage1)


# There and back


def test_a_checkpoint_comes_back_as_it_was_written(tmp_path, stage1, written, make_lineage, spec):
    found = Checkpoint.open(str(tmp_path / "one"), 1)
    assert found == written
    assert (found.stage, found.step, found.encoder) == (1, 7, spec)
    assert found.lineage == make_lineage()
    assert found.summary == f"stage 1, 7 steps, digest {found.digest[:16]}"
    tensors, ours = found.tensors(), stage1.state_dict()
    assert tensors.keys() == ours.keys()
    assert all(torch.equal(tensors[name], ours[name]) for name in ours)
    assert found.tensors("optimizer") == {"a.step": torch.tensor(7.0)}


def test_the_digest_knows_no_path_no_optimiser_and_no_time(
    tmp_path, stage1, written, save_checkpoint
):
    moved = save_checkpoint(tmp_path / "deep" / "two", stage1)
    assert moved.digest == written.digest
    without = {"weights": moved.read("weights"), "tokenizer": moved.read("tokenizer")}
    assert write_checkpoint(replace(moved, files={}), without).digest == written.digest


def test_the_digest_knows_weights_tokenizer_configuration_and_lineage(
    tmp_path, stage1, scattered_stage1, written, make_lineage, save_checkpoint
):
    nudged = scattered_stage1()
    with torch.no_grad():
        nudged.temperature.add_(1e-6)
    others = [
        save_checkpoint(tmp_path / "weights", nudged),
        save_checkpoint(tmp_path / "config", stage1, config=written.config | {"dropout": 0.2}),
        save_checkpoint(tmp_path / "lineage", stage1, lineage=make_lineage(seed=1)),
        save_checkpoint(tmp_path / "stage", stage1, stage=2),
    ]
    digests = {written.digest, *(other.digest for other in others)}
    assert len(digests) == 5


def test_what_was_killed_before_its_end_is_no_checkpoint(
    tmp_path, stage1, monkeypatch, save_checkpoint
):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Folder, "publish_json", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path / "half", stage1)
    assert (tmp_path / "half" / "weights.safetensors").exists()
    with pytest.raises(ConfigError, match=r"half: no checkpoint \(it has no checkpoint.json\)"):
        Checkpoint.open(str(tmp_path / "half"))


# Damage


@pytest.mark.parametrize("role", ["weights", "tokenizer"])
@pytest.mark.parametrize("how", ["one bit", "cut", "gone"])
def test_a_damaged_file_is_named(written, role, how):
    name = written.files[role]["file"]
    file = Path(written.folder.path) / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(content if how == "one bit" else content[:100])
    with pytest.raises(DatasetError, match=name) as error:
        load_stage1(Checkpoint.open(written.folder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"stage": 2},
        {"config": {}},
        {"digest": "00" * 32},
        {"format": "viaduct-checkpoint/9"},
        {"lineage": {}},
        {"lineage": None},
        {"step": "many"},
        {"files": {"weights": {}}},
        {"files": []},
        {"files": None},
    ],
)
def test_a_changed_checkpoint_json_is_named(written, change):
    file = Path(written.folder.path) / "checkpoint.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(DatasetError, match=r"one/checkpoint\.json: "):
        Checkpoint.open(written.folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b"\xff\xfe"])
def test_a_checkpoint_json_that_is_none_is_named(written, content):
    (Path(written.folder.path) / "checkpoint.json").write_bytes(content)
    with pytest.raises(DatasetError, match=r"one/checkpoint\.json: "):
        Checkpoint.open(written.folder)


# A training folder


def test_a_training_holds_the_checkpoints_of_its_steps_in_order(tmp_path, stage1, save_checkpoint):
    training = Folder.at(tmp_path / "training")
    for step in (1_000_000, 20, 100):
        save_checkpoint(step_folder(training, step), stage1, step=step)
    (tmp_path / "training" / "checkpoints" / "step-000200").mkdir()  # killed while it was written
    assert [kept.step for kept in kept_steps(training)] == [20, 100, 1_000_000]
    assert kept_steps(Folder.at(tmp_path / "none")) == []


def test_an_unfinished_training_says_what_can_be_done(tmp_path, stage1, save_checkpoint):
    training = Folder.at(tmp_path / "training")
    save_checkpoint(step_folder(training, 20), stage1, step=20)
    save_checkpoint(step_folder(training, 40), stage1, step=40)
    expected = "training: its training is not finished; run it again, or name one of its "
    with pytest.raises(ConfigError, match=expected) as error:
        Checkpoint.open(training)
    named = str(error.value).rpartition(" ")[2]
    assert Checkpoint.open(f"{training}/{named}").step == 40


def test_the_last_step_becomes_the_whole_training(tmp_path, stage1, save_checkpoint):
    training = Folder.at(tmp_path / "training")
    last = save_checkpoint(step_folder(training, 40), stage1, step=40)
    whole = publish_last(training, last)
    found = Checkpoint.open(str(tmp_path / "training"))
    assert found == whole
    assert (found.digest, found.step) == (last.digest, 40)
    assert load_stage1(found).config == stage1.config
    (tmp_path / "training/checkpoints/step-000040/weights.safetensors").unlink()
    with pytest.raises(DatasetError, match=r"step-000040/weights\.safetensors: cannot be read"):
        load_stage1(found)


def test_where_there_is_none_it_is_said(tmp_path):
    with pytest.raises(ConfigError, match="nowhere: no such folder"):
        Checkpoint.open(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"no checkpoint \(it has no checkpoint.json\)"):
        Checkpoint.open(str(tmp_path))
