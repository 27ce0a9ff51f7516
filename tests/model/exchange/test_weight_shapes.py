"""The configuration of a Q-Former is read off its weights, or what keeps it from that is named."""

from dataclasses import asdict

import pytest
import torch
from torch import Tensor

from model.exchange.weight_names import TRANSFORMERS
from model.exchange.weight_shapes import config_of
from model.stage1 import Stage1
from model.stage2 import Stage2
from pipeline.errors import ConfigError


@pytest.fixture
def weights(tiny, tokenizer):
    """Makes the weights of a stage 1."""
    return lambda **changes: Stage1(tiny(**changes), tokenizer).state_dict()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_layers": 1},
        {"num_layers": 5, "cross_attention_every": 3},
        {"num_layers": 4, "cross_attention_every": 1},
        {"num_queries": 1, "embed_dim": 3, "vision_width": 7, "feed_forward_width": 11},
    ],
)
def test_a_configuration_is_found_again(tiny, weights, changes):
    known = {"num_heads": 3, "dropout": 0.0, "max_text_tokens": 20}
    found = asdict(config_of(weights(**changes), TRANSFORMERS, known))
    expected = asdict(tiny(**changes))
    if changes.get("num_layers") == 1:  # every layer looks, however far apart they were to be
        found["cross_attention_every"] = expected["cross_attention_every"]
    assert found == expected


def test_heads_are_64_wide_where_nothing_else_is_known(tiny, weights):
    assert config_of(weights(width=192), TRANSFORMERS, {}).num_heads == 3
    assert config_of(weights(), TRANSFORMERS, {}).num_heads == 1


def test_texts_are_no_longer_than_there_are_positions(weights):
    assert config_of(weights(), TRANSFORMERS, {}).max_text_tokens == 24
    assert config_of(weights(max_positions=40), TRANSFORMERS, {}).max_text_tokens == 32


def test_stage_2_tells_nothing_of_text(tiny):
    found = config_of(Stage2(tiny(), 16).state_dict(), TRANSFORMERS, {})
    assert (found.width, found.num_layers, found.vision_width) == (24, 3, 10)
    assert found.vocab_size == 30_523


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("qformer.query_tokens", None, "^query_tokens: missing"),
        ("ln_vision.weight", None, r"^vision_model\.post_layernorm\.weight: missing"),
        ("qformer.query_tokens", torch.zeros(4), r"^query_tokens: has shape \(4,\)"),
    ],
)
def test_a_weight_that_tells_nothing_is_named(weights, name: str, value: Tensor | None, message):
    changed = {n: v for n, v in (weights() | {name: value}).items() if v is not None}
    with pytest.raises(ConfigError, match=message):
        config_of(changed, TRANSFORMERS, {})


def test_unevenly_spaced_cross_attention_is_refused(weights):
    without = {n: v for n, v in weights().items() if "layers.0.look" not in n}
    with pytest.raises(ConfigError, match=r"crossattention: in layers \[2\]"):
        config_of(without, TRANSFORMERS, {})
