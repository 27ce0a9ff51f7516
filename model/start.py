"""Where stage 1 starts: a BERT checkpoint, or nothing but a size."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import BertConfig

from model.bert import Bert, copy_bert, load_bert
from model.pretrained.architectures import bert_shape
from model.pretrained.digests import weights_digest
from model.qformer import QFormerConfig, check_text_length
from model.stage1 import Stage1
from model.tokenizer import CaptionTokenizer
from model.vocabulary import learned_tokenizer
from pipeline.errors import ConfigError

SCRATCH = "scratch"

VOCAB_SIZE = 8192
"""Word pieces learned from the captions, by default."""


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """What the Q-Former starts from, and its size."""

    start: str = "hf:bert-base-uncased"
    """A BERT (`hf:NAME_OR_FOLDER`, or `offline:minilm`, which comes with pip), or `scratch`."""

    num_layers: int | None = None
    """Layers; only from scratch, 12 by default. A BERT has its own, as the next three."""

    width: int | None = None
    """Width of the hidden states, D; 768 by default. Feed-forward nets are four times as wide."""

    num_heads: int | None = None
    """Heads of attention; by default one for each 64 of the width."""

    vocab_size: int | None = None
    """Word pieces learned from the training captions, at most; 8,192 by default."""

    num_queries: int = 32
    """Query tokens, Q."""

    embed_dim: int = 256
    """Width of the contrastive embeddings, E."""

    dropout: float = 0.1
    """Share of values set to zero in training."""

    max_text_tokens: int = 32
    """Longest caption in tokens; longer ones are cut."""

    def __post_init__(self) -> None:
        sizes = ("num_layers", "width", "num_heads", "vocab_size")
        given = [name for name in sizes if getattr(self, name) is not None]
        if self.start != SCRATCH and given:
            raise ConfigError(f"{given[0]}: {self.start} has its own; only {SCRATCH!r} takes one")
        if self.vocab_size is not None and self.vocab_size < 64:
            raise ConfigError(f"vocab_size: {self.vocab_size} is less than 64")


def start_tokenizer(config: StartConfig, texts: Iterable[str]) -> CaptionTokenizer:
    """The tokenizer to start with: the checkpoint's, or one learned from the captions.

    Raises:
        ConfigError: the checkpoint's cannot be had.
    """
    if config.start == SCRATCH:
        return learned_tokenizer(texts, config.vocab_size or VOCAB_SIZE)
    return CaptionTokenizer.of_model(config.start)


def start_stage1(
    config: StartConfig, tokenizer: CaptionTokenizer, vision_width: int, seed: int
) -> Stage1:
    """Stage 1 before its first step, on the CPU; equal arguments give equal weights.

    Args:
        config: see there.
        tokenizer: from `start_tokenizer`.
        vision_width: C
        seed: of all weights that come from no checkpoint.

    Raises:
        ConfigError: the checkpoint cannot be had, or is no BERT.
    """
    bert = None if config.start == SCRATCH else load_bert(config.start)
    if bert is not None:
        _check_tokenizer(config, tokenizer, bert)
    shape = None if bert is None else bert[0].config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stage1 = Stage1(_size(config, len(tokenizer), vision_width, shape), tokenizer)
    if bert is not None:
        copy_bert(stage1, bert)
    return stage1


def start_digest(config: StartConfig) -> str | None:
    """Digest of the weights that stage 1 starts from; None from scratch.

    Raises:
        ConfigError: they cannot be had, or cannot read so long captions.
    """
    if config.start == SCRATCH:
        return None
    model, has_head = load_bert(config.start)
    check_text_length(config.max_text_tokens, model.config.max_position_embeddings)
    return weights_digest(model if has_head else model.bert)  # a head that was not there is chance


def planned_size(config: StartConfig, vision_width: int) -> QFormerConfig:
    """The size that stage 1 will have, without its weights; the vocabulary is taken as full.

    Args:
        config: see there.
        vision_width: C

    Raises:
        ConfigError: the shape of what it starts from cannot be had.
    """
    if config.start == SCRATCH:
        return _size(config, config.vocab_size or VOCAB_SIZE, vision_width, None)
    shape = bert_shape(config.start)
    return _size(config, shape.vocab_size + 1, vision_width, shape)  # [DEC]


def _check_tokenizer(config: StartConfig, tokenizer: CaptionTokenizer, bert: Bert) -> None:
    """Raises ConfigError where it is not that of the checkpoint."""
    vocab_size = bert[0].config.vocab_size
    if len(tokenizer) < vocab_size / 2:  # transformers makes an empty one if there is none
        raise ConfigError(
            f"start: {config.start}: its tokenizer has {len(tokenizer)} words, its model "
            f"{vocab_size}"
        )


def _size(
    config: StartConfig, vocab_size: int, vision_width: int, bert: BertConfig | None
) -> QFormerConfig:
    width = config.width or 768
    shape: dict[str, Any] = {
        "width": width,
        "num_layers": config.num_layers or 12,
        "num_heads": config.num_heads or max(1, width // 64),
        "feed_forward_width": 4 * width,
    }
    if bert is not None:
        shape = {
            "width": bert.hidden_size,
            "num_layers": bert.num_hidden_layers,
            "num_heads": bert.num_attention_heads,
            "feed_forward_width": bert.intermediate_size,
            "max_positions": bert.max_position_embeddings,
            "layer_norm_eps": bert.layer_norm_eps,
        }
    return QFormerConfig(
        vision_width=vision_width,
        vocab_size=vocab_size,
        num_queries=config.num_queries,
        embed_dim=config.embed_dim,
        dropout=config.dropout,
        max_text_tokens=config.max_text_tokens,
        **shape,
    )
