"""What the tests of the Q-Former share: a small one, captions for it, and checked shapes."""

import importlib
import sys
from types import SimpleNamespace

import jaxtyping
import pytest
import torch
from tokenizers import BertWordPieceTokenizer

from model.qformer import QFormerConfig
from model.stage1 import Stage1
from model.text import CaptionTokenizer

CAPTIONS = [
    "a red boat on a lake",
    "two dogs run over the grass",
    "a man",
    "the old house by the sea at night, with a light in its window",
    "a plate of food and a glass of water",
    "people wait for a green bus",
]


@pytest.fixture(scope="module")
def one_thread():
    """Tensors are small here: on a busy machine threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def captions() -> list[str]:
    """Captions of different lengths."""
    return list(CAPTIONS)


@pytest.fixture(scope="session")
def tokenizer() -> CaptionTokenizer:
    """One token a word of the captions."""
    words = sorted({word for text in CAPTIONS for word in text.replace(",", " ,").split()})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: number for number, word in enumerate(special + words)}
    return CaptionTokenizer.from_json(BertWordPieceTokenizer(vocab=vocabulary).to_str())


@pytest.fixture(scope="session")
def tiny(tokenizer):
    """Makes the configuration of a Q-Former of three layers."""

    def config(**changes: int | float) -> QFormerConfig:
        small = {
            "vision_width": 10,
            "vocab_size": len(tokenizer),
            "width": 24,
            "num_layers": 3,
            "num_heads": 3,
            "feed_forward_width": 40,
            "num_queries": 4,
            "embed_dim": 6,
            "max_positions": 24,
            "max_text_tokens": 20,
            "dropout": 0.0,
        }
        return QFormerConfig(**(small | changes))

    return config


@pytest.fixture(scope="session")
def scattered_stage1(tiny, tokenizer):
    """Makes a Stage1 whose weights are large enough for every part to matter."""

    def make(**changes: int | float) -> Stage1:
        stage1 = Stage1(tiny(**changes), tokenizer)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in stage1.named_parameters():
                noise = torch.empty_like(parameter).normal_(0, 0.2, generator=generator)
                is_scale = "norm" in name or name.startswith("ln_vision")
                parameter.copy_(1 + noise if is_scale and name.endswith("weight") else noise)
            stage1.temperature.fill_(0.3)
            stage1.itm_head.weight.mul_(2)  # or ITM stays at its prior
        return stage1

    return make


@pytest.fixture(scope="session")
def checked():
    """The modules under test once more, with the shapes of every call checked."""
    names = ["qformer", "objectives", "ranks", "stage1", "beams", "generation"]
    plain = {name: importlib.import_module(f"model.{name}") for name in names}
    for name in names:
        del sys.modules[f"model.{name}"]
    with jaxtyping.install_import_hook([f"model.{name}" for name in names], "beartype.beartype"):
        strict = {name: importlib.import_module(f"model.{name}") for name in names}
    for name, module in plain.items():
        sys.modules[f"model.{name}"] = module
        setattr(importlib.import_module("model"), name, module)
    return SimpleNamespace(**strict)
