"""What is counted on the meta device is what the models compute: closed forms, and a real step."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import OPTConfig

from model.costs import (
    counted,
    embed_cost,
    encoder_cost,
    match_cost,
    parameters_of,
    stage1_batch,
    stage1_cost,
    stage2_cost,
)
from model.objectives import ObjectivesConfig
from model.qformer import QFormerConfig
from model.stage1 import Stage1
from model.stage2 import Stage2
from pipeline.errors import ConfigError

P, C, Q, D, F, E, V, T = 10, 24, 4, 32, 64, 8, 50, 6
SIZE = QFormerConfig(
    vision_width=C,
    vocab_size=V,
    width=D,
    num_layers=3,
    num_heads=2,
    feed_forward_width=F,
    num_queries=Q,
    embed_dim=E,
    max_positions=16,
    max_text_tokens=16,
    dropout=0.0,
)


def test_an_encoder_is_counted_up_to_its_layer():
    tokens, width, depth = 197, 192, 12
    patches = 2 * 196 * (3 * 16 * 16) * width
    block = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width
    for layer in (-1, -2, -depth):
        cost = encoder_cost("timm:vit_tiny_patch16_224", layer)
        assert (cost.num_tokens, cost.width) == (tokens, width)
        assert cost.flops == patches + (depth + layer + 1) * block
    with pytest.raises(ConfigError, match="layer: -13, but the encoder has 12 blocks"):
        encoder_cost("timm:vit_tiny_patch16_224", -13)


def test_encoders_of_the_paper_and_the_demo():
    giant = encoder_cost("timm:eva_giant_patch14_clip_224.laion400m", -2)
    assert (giant.num_tokens, giant.width) == (257, 1408)
    tokens, width, inner = 257, 1408, 6144
    block = 2 * tokens * (4 * width**2 + 2 * width * inner) + 4 * tokens**2 * width
    assert giant.flops == 39 * block + 2 * 256 * (3 * 14 * 14) * width
    lite = encoder_cost("offline:efficientnet_lite0", -2)
    assert (lite.num_tokens, lite.width) == (49, 1280)
    for name in ("timm:no_such_vit", "vit_tiny_patch16_224", "hf:/no/such/folder"):
        with pytest.raises(ConfigError, match=r"^encoder: "):
            encoder_cost(name, -1)


def test_embeddings_cost_their_closed_form():
    cost = embed_cost(SIZE, P, T)
    keys = 2 * 2 * P * C * D  # of a layer that looks: keys and values
    shift = 2 * 2 * C * D / 8  # ln_vision's, once for the eight pictures of the count
    look = 2 * 2 * Q * D**2 + 4 * Q * P * D
    layer = 4 * 2 * Q * D**2 + 4 * Q**2 * D + 2 * 2 * Q * D * F
    assert cost.picture == 2 * (keys + shift + look) + 3 * layer + 2 * Q * D * E
    assert cost.caption == 3 * (4 * 2 * T * D**2 + 4 * T**2 * D + 4 * T * D * F) + 2 * D * E


def test_matching_costs_its_closed_form():
    """Of the last layer nothing reads the text: its rows are keys and values there, no more."""
    cost = match_cost(SIZE, P, T)
    keys, shift = 2 * 2 * P * C * D, 2 * 2 * C * D / 8
    assert cost.picture == 2 * (keys + shift)
    rows = Q + T
    attention = 2 * (4 * 2 * rows * D**2) + (2 * 2 * rows + 2 * 2 * Q) * D**2 + 3 * 4 * rows**2 * D
    looks = 2 * (2 * 2 * Q * D**2 + 4 * Q * P * D)
    nets = 3 * (2 * 2 * Q * D * F) + 2 * (2 * 2 * T * D * F)
    assert cost.pair == attention + looks + nets + 2 * Q * D * 2


def test_a_step_of_stage_1_costs_what_a_real_one_computes():
    stage1 = Stage1(SIZE, tokenizer=None)
    batch = stage1_batch(SIZE, 8, P, T)
    uniform = torch.rand(2, 8, dtype=torch.float64)

    def step() -> None:
        stage1(batch, ObjectivesConfig(), 1.0, uniform)["loss"].backward()

    with sdpa_kernel(SDPBackend.MATH):  # PyTorch counts no other attention on a CPU
        flops, _ = counted(step)
    cost = stage1_cost(SIZE, P, T)
    assert cost.flops == flops / 8
    assert cost.parameters == parameters_of(stage1)
    # Other ranks' pictures: keys and values of two layers, forward and the weights' gradient; what
    # ln_vision's scale and shift add to them does not grow with the pictures. Their texts: the
    # first layer until queries look, forward and both gradients.
    rows = Q + T
    texts = 8 * 3 * (4 * 2 * rows * D**2 + 4 * rows**2 * D + 2 * 2 * T * D * F)
    more = 8 * (cost.flops_of_ranks - cost.flops) - texts
    assert 2 * 2 * (2 * 8 * P * C * D) * 2 <= more <= 2 * 2 * (2 * (8 * P + 4) * C * D) * 2


def test_a_frozen_language_model_costs_forward_and_a_gradient_of_its_inputs(tmp_path):
    width, inner = 16, 40
    costs = {}
    for layers in (1, 3):
        config = OPTConfig(
            hidden_size=width,
            word_embed_proj_dim=width,
            ffn_dim=inner,
            num_hidden_layers=layers,
            num_attention_heads=2,
            vocab_size=V,
        )
        config.save_pretrained(tmp_path / str(layers))
        costs[layers] = stage2_cost(SIZE, f"hf:{tmp_path / str(layers)}", P, T)
    rows = Q + T
    linear, attention = 2 * rows * (4 * width**2 + 2 * width * inner), 4 * rows**2 * width
    assert costs[3].flops - costs[1].flops == 2 * (2 * linear + 3 * attention)
    assert costs[1].parameters == costs[3].parameters == parameters_of(Stage2(SIZE, width))


def test_a_language_model_that_is_nowhere_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"language_model: hf:.*nowhere cannot be had"):
        stage2_cost(SIZE, f"hf:{tmp_path}/nowhere", P, T)
