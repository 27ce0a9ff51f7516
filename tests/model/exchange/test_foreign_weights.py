"""Weights of another format make models that hold them all; the first that misfits is named."""

import pytest
import torch

from model.exchange.foreign_weights import ForeignWeights
from model.exchange.weight_names import TRANSFORMERS, lavis_names
from model.stage2 import Stage2
from pipeline.errors import ConfigError

LACKING = ("temperature", "qformer.head.")


@pytest.fixture
def first(scattered_stage1) -> ForeignWeights:
    """Of stage 1, as transformers has it."""
    stage1 = scattered_stage1()
    tensors = {n: v for n, v in stage1.state_dict().items() if not n.startswith(LACKING)}
    return ForeignWeights(1, stage1.config, tensors, TRANSFORMERS, LACKING, {})


@pytest.fixture
def second(tiny) -> ForeignWeights:
    torch.manual_seed(3)
    tensors = Stage2(tiny(), 16).state_dict()
    return ForeignWeights(2, tiny(), tensors, lavis_names("t5_proj"), (), {})


def test_stage_1_holds_the_weights_and_what_is_lacking_comes_from_no_ones_seed(first, tokenizer):
    torch.manual_seed(1)
    one = first.stage1(tokenizer)
    torch.manual_seed(2)
    following = torch.rand(1)
    torch.manual_seed(2)
    other = first.stage1(tokenizer)
    assert torch.equal(torch.rand(1), following)  # nobody's draws are used up
    assert not one.training
    ours = one.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in first.tensors.items())
    assert all(torch.equal(ours[name], value) for name, value in other.state_dict().items())
    assert one.temperature.item() == pytest.approx(0.07)
    assert len(ours) > len(first.tensors)


def test_stage_2_holds_the_weights(second):
    made = second.stage2()
    assert not made.training
    assert made.projection.out_features == 16
    ours = made.state_dict()
    assert ours.keys() == second.tensors.keys()
    assert all(torch.equal(ours[name], value) for name, value in second.tensors.items())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("itm_head.bias", None, r"^itm_head\.bias: missing"),
        (
            "qformer.layers.1.attention.query.weight",
            None,
            r"^qformer\.encoder\.layer\.1\..*missing",
        ),
        (
            "projection.bias",
            torch.zeros(1),
            "^language_projection.bias: unexpected in a .* stage 1",
        ),
        ("text_proj.bias", torch.zeros(7), r"^text_projection\.bias: has shape \(7,\), not \(6,\)"),
    ],
)
def test_what_does_not_fit_stage_1_is_named_by_their_name(first, tokenizer, name, value, message):
    first.tensors.pop(name, None)
    first.tensors.update({} if value is None else {name: value})
    with pytest.raises(ConfigError, match=message):
        first.stage1(tokenizer)


def test_what_does_not_fit_stage_2_is_named_by_their_name(second):
    del second.tensors["projection.weight"]
    with pytest.raises(ConfigError, match=r"^t5_proj\.weight: missing"):
        second.stage2()


def test_a_tokenizer_of_another_vocabulary_is_refused(first, tiny, tokenizer):
    other = ForeignWeights(1, tiny(vocab_size=9), first.tensors, TRANSFORMERS, LACKING, {})
    with pytest.raises(ConfigError, match=rf"has {len(tokenizer)} words with .DEC., but .* 9 rows"):
        other.stage1(tokenizer)


def test_each_reason_is_a_line(first):
    first.left_out.update({"counts from 0": ["ids"], "of text": ["a.up", "b.up", "c.up"]})
    assert first.told == ["left out: ids: counts from 0", "left out: a.up and 2 more: of text"]
