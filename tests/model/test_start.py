"""Stage 1 starts as a checkpoint, as a BERT, or from scratch; equal seeds, equal weights."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import (
    OPTConfig,
    OPTForCausalLM,
)

from model.start import (
    StartConfig,
    planned_size,
    size_from_checkpoint,
    start_digest,
    start_from_checkpoint,
)
from pipeline.errors import ConfigError

TEXTS = ["A red boat", "the dogs on the lake", "boats"]
C = 10


# From a BERT


def test_what_a_bert_has_not_comes_from_the_seed(bert, headless, begin_from, weights_of):
    new = ("query_tokens", ".look.", "_proj.weight", "itm_head.weight")
    one, same, other = weights_of(begin_from(bert)), weights_of(begin_from(bert)), None
    assert one == same
    other = weights_of(begin_from(bert, seed=1))
    differ = {name for name in one if one[name] != other[name]}
    assert {"qformer.query_tokens", "qformer.embeddings.words.weight"} <= differ
    assert all(any(part in name for part in new) or "words" in name for name in differ)
    torch.manual_seed(99)  # the seed alone decides, not what was drawn before
    assert weights_of(begin_from(bert)) == one


def test_a_start_leaves_the_global_generator_alone(bert, begin_from):
    torch.manual_seed(5)
    begin_from(bert)
    found = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(found, torch.rand(1))


def test_the_size_is_the_berts(bert, begin_from):
    config = begin_from(bert).config
    assert (config.width, config.num_layers, config.num_heads) == (24, 3, 4)
    assert (config.feed_forward_width, config.max_positions) == (40, 20)
    assert config.layer_norm_eps == 1e-7
    assert (config.vision_width, config.num_queries, config.embed_dim) == (C, 4, 6)


def test_the_digest_names_the_weights_whatever_was_drawn_before(
    bert, headless, tmp_path, save_bert
):
    configs = [StartConfig(start=f"hf:{f}", max_text_tokens=12) for f in (bert, headless)]
    torch.manual_seed(0)
    first = [start_digest(config) for config in configs]
    torch.manual_seed(1)
    assert [start_digest(config) for config in configs] == first
    other = save_bert(tmp_path / "other", seed=1)
    assert start_digest(StartConfig(start=f"hf:{other}", max_text_tokens=12)) not in first
    assert start_digest(StartConfig(start="scratch")) is None


def test_minilm_comes_with_pip(begin):
    stage1 = begin("offline:minilm")
    assert (stage1.config.width, stage1.config.num_layers, stage1.config.num_heads) == (384, 6, 12)
    assert stage1.config.vocab_size == len(stage1.tokenizer) == 30_523
    assert stage1.qformer.embeddings.words.weight[2000:3000].std() > 0.05  # ours have 0.03


# From scratch


def test_from_scratch_it_has_the_size_that_is_asked_for(begin):
    stage1 = begin("scratch", num_layers=2, width=32, num_heads=2, vocab_size=70)
    config = stage1.config
    assert (config.num_layers, config.width, config.num_heads) == (2, 32, 2)
    assert config.feed_forward_width == 128
    assert config.vocab_size == len(stage1.tokenizer) <= 70
    assert config.dropout == 0.1


def test_heads_are_one_for_each_64_of_the_width(begin):
    sizes = {width: begin("scratch", num_layers=1, width=width).config for width in (32, 128)}
    assert {width: config.num_heads for width, config in sizes.items()} == {32: 1, 128: 2}
    with pytest.raises(ConfigError, match="width: 100 is no multiple of num_heads=3"):
        begin("scratch", num_layers=1, width=100, num_heads=3)


def test_from_scratch_equal_seeds_are_equal_weights(begin, weights_of):
    sizes = {"num_layers": 2, "width": 32, "num_heads": 2}
    one = weights_of(begin("scratch", **sizes))
    torch.manual_seed(7)
    assert weights_of(begin("scratch", **sizes)) == one
    assert weights_of(begin("scratch", seed=1, **sizes)) != one


# From a checkpoint


@pytest.fixture
def checkpoint(tmp_path, scattered_stage1, save_checkpoint):
    return save_checkpoint(tmp_path / "stage1", scattered_stage1(dropout=0.2))


def test_a_checkpoint_is_taken_as_it_is(checkpoint, weights_of):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    stage1 = start_from_checkpoint(StartConfig(init="x"), checkpoint)
    assert torch.equal(torch.rand(1), expected)  # and the global generator is left alone
    assert stage1.config == checkpoint.qformer
    stored = {name: value.tolist() for name, value in checkpoint.tensors().items()}
    assert weights_of(stage1) == stored
    assert stage1.tokenizer.to_json().encode() == checkpoint.read("tokenizer")


def test_dropout_and_the_length_of_captions_are_the_trainings(checkpoint):
    config = StartConfig(init="x", dropout=0.0, max_text_tokens=24)
    size = size_from_checkpoint(config, checkpoint)
    assert size == replace(checkpoint.qformer, dropout=0.0, max_text_tokens=24)
    assert start_from_checkpoint(config, checkpoint).config == size
    with pytest.raises(ConfigError, match="max_text_tokens: 25, but max_positions=24"):
        size_from_checkpoint(replace(config, max_text_tokens=25), checkpoint)


@pytest.mark.parametrize(
    "option",
    [
        {"start": "scratch"},
        {"num_layers": 3},
        {"width": 24},
        {"num_heads": 3},
        {"vocab_size": 100},
        {"num_queries": 4},
        {"embed_dim": 6},
    ],
)
def test_a_start_or_a_size_beside_a_checkpoint_is_refused(option):
    ((name, value),) = option.items()
    with pytest.raises(ConfigError, match=f"{name}: {value}, but init=stage1 has its own"):
        StartConfig(init="stage1", **option)


def test_the_planned_size_is_the_checkpoints(checkpoint):
    config = StartConfig(init=str(checkpoint.folder))
    assert planned_size(config, C) == checkpoint.qformer
    with pytest.raises(ConfigError, match=r"image tokens 10 wide; the encoder's are 12"):
        planned_size(config, 12)
    with pytest.raises(ConfigError, match="no such folder"):
        planned_size(StartConfig(init="/nowhere"), C)


def test_a_lineage_has_the_defaults_and_of_a_checkpoint_no_size():
    assert StartConfig(dropout=0.0).lasting == {
        "start": "hf:bert-base-uncased",
        **dict.fromkeys(("num_layers", "width", "num_heads", "vocab_size")),
        **{"num_queries": 32, "embed_dim": 256, "dropout": 0.0, "max_text_tokens": 32},
    }
    assert StartConfig(init="x", dropout=0.0).lasting == {"dropout": 0.0}


# What cannot be had


@pytest.mark.parametrize("name", ["num_layers", "width", "num_heads", "vocab_size"])
def test_a_size_beside_a_bert_is_refused(bert, name):
    with pytest.raises(ConfigError, match=rf"{name}: hf:.* has its own; only 'scratch' takes one"):
        StartConfig(start=f"hf:{bert}", **{name: 128})


def test_a_vocabulary_without_room_is_refused():
    with pytest.raises(ConfigError, match="vocab_size: 63 is less than 64"):
        StartConfig(start="scratch", vocab_size=63)


def told(name: str) -> str:
    """The error of a start, which must be one line."""
    with pytest.raises(ConfigError) as error:
        start_digest(StartConfig(start=name))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_no_bert_is_named(tmp_path):
    small = OPTConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    OPTForCausalLM(small).save_pretrained(tmp_path / "opt")
    assert f"start: hf:{tmp_path}/opt is a opt; a BERT is needed" in told(f"hf:{tmp_path}/opt")


def test_a_folder_that_is_not_there_or_no_model_is_named(tmp_path, bert):
    assert f"start: hf:{tmp_path}/none cannot be had" in told(f"hf:{tmp_path}/none")
    assert "cannot be had" in told(f"hf:{tmp_path}")
    weightless = tmp_path / "weightless"
    weightless.mkdir()
    config = json.loads((bert / "config.json").read_text())
    (weightless / "config.json").write_text(json.dumps(config))
    assert "weightless cannot be had" in told(f"hf:{weightless}")
    assert "'magic' is neither hf:NAME_OR_FOLDER nor" in told("magic")


def test_damaged_weights_are_named(tmp_path, save_bert):
    folder = save_bert(tmp_path / "bert")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    assert f"start: hf:{folder} cannot be had" in told(f"hf:{folder}")


def test_a_bert_without_its_tokenizer_is_named(tmp_path, begin_from, save_bert):
    folder = save_bert(tmp_path / "bert")
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(ConfigError, match="tokenizer"):
        begin_from(folder)
