"""Where stage 1 starts: a checkpoint of its own, a BERT, or nothing but a size."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from transformers import BertConfig

from model.bert import Bert, copy_bert, load_bert
from model.checkpoint import Checkpoint
from model.checkpoint_models import sized_stage1
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

_DEFAULTS: dict[str, Any] = {
    "start": "hf:bert-base-uncased",
    "num_queries": 32,
    "embed_dim": 256,
    "dropout": 0.1,
    "max_text_tokens": 32,
}
"""Where no checkpoint is gone on from, and nothing is said."""

_OF_TRAINING = ("dropout", "max_text_tokens")
"""What may change where a checkpoint is gone on from: no weight's shape depends on it."""


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """What the Q-Former starts from, and its size."""

    init: str | None = None
    """Training folder or checkpoint of stage 1 to go on from, or an imported one: its weights,
    tokenizer and size, with the optimizer and the schedule anew. The features must be of its
    encoder. It stands in place of --start and of all sizes."""

    start: str | None = None
    """A BERT (`hf:NAME_OR_FOLDER`, or `offline:minilm`, which comes with pip), or `scratch`;
    hf:bert-base-uncased by default."""

    num_layers: int | None = None
    """Layers; only from scratch, 12 by default. A BERT has its own, as the next three."""

    width: int | None = None
    """Width of the hidden states, D; 768 by default. Feed-forward nets are four times as wide."""

    num_heads: int | None = None
    """Heads of attention; by default one for each 64 of the width."""

    vocab_size: int | None = None
    """Word pieces learned from the training captions, at most; 8,192 by default."""

    num_queries: int | None = None
    """Query tokens, Q; 32 by default."""

    embed_dim: int | None = None
    """Width of the contrastive embeddings, E; 256 by default."""

    dropout: float | None = None
    """Share of values set to zero in training; by default 0.1, or that of the checkpoint of
    --init."""

    max_text_tokens: int | None = None
    """Longest caption in tokens, longer ones are cut; by default 32, or that of the checkpoint of
    --init."""

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if self.init is not None:
            if own := [name for name in given if name not in ("init", *_OF_TRAINING)]:
                raise ConfigError(f"{own[0]}: {given[own[0]]}, but init={self.init} has its own")
            return
        sizes = [n for n in ("num_layers", "width", "num_heads", "vocab_size") if n in given]
        if self.base != SCRATCH and sizes:
            raise ConfigError(f"{sizes[0]}: {self.base} has its own; only {SCRATCH!r} takes one")
        if self.vocab_size is not None and self.vocab_size < 64:
            raise ConfigError(f"vocab_size: {self.vocab_size} is less than 64")

    @property
    def base(self) -> str:
        """A BERT's name, or `scratch`; means nothing where a checkpoint is gone on from."""
        return self.start or str(_DEFAULTS["start"])

    @property
    def lasting(self) -> dict[str, Any]:
        """What a training's lineage holds of it, defaults filled in; `init` is there by digest."""
        values = asdict(self)
        if values.pop("init") is not None:
            return {name: values[name] for name in _OF_TRAINING if values[name] is not None}
        return {n: _DEFAULTS.get(n) if value is None else value for n, value in values.items()}


def start_tokenizer(config: StartConfig, texts: Iterable[str]) -> CaptionTokenizer:
    """The tokenizer to start with where no checkpoint is: the BERT's, or learned from captions.

    Raises:
        ConfigError: the BERT's cannot be had.
    """
    if config.base == SCRATCH:
        return learned_tokenizer(texts, config.vocab_size or VOCAB_SIZE)
    return CaptionTokenizer.of_model(config.base)


def start_stage1(
    config: StartConfig, tokenizer: CaptionTokenizer, vision_width: int, seed: int
) -> Stage1:
    """Stage 1 before its first step where no checkpoint is, on the CPU; equal arguments give equal
    weights.

    Args:
        config: see there.
        tokenizer: from `start_tokenizer`.
        vision_width: C
        seed: of all weights that come from no BERT.

    Raises:
        ConfigError: the BERT cannot be had, or is none.
    """
    bert = None if config.base == SCRATCH else load_bert(config.base)
    if bert is not None:
        _check_tokenizer(config, tokenizer, bert)
    shape = None if bert is None else bert[0].config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stage1 = Stage1(_size(config, len(tokenizer), vision_width, shape), tokenizer)
    if bert is not None:
        copy_bert(stage1, bert)
    return stage1


def start_from_checkpoint(config: StartConfig, checkpoint: Checkpoint) -> Stage1:
    """Stage 1 as a checkpoint of it has it, on the CPU.

    Args:
        config: see there.
        checkpoint: of its `init`.

    Raises:
        ConfigError: as `size_from_checkpoint`.
        DatasetError: the checkpoint's files are damaged.
    """
    with torch.random.fork_rng(devices=[]):
        return sized_stage1(checkpoint, size_from_checkpoint(config, checkpoint))


def size_from_checkpoint(config: StartConfig, checkpoint: Checkpoint) -> QFormerConfig:
    """The size of a checkpoint, with the dropout and the length of texts that are asked for.

    Raises:
        ConfigError: the checkpoint has no positions for so long texts.
    """
    given = {name: getattr(config, name) for name in _OF_TRAINING}
    return replace(
        checkpoint.qformer, **{n: value for n, value in given.items() if value is not None}
    )


def start_digest(config: StartConfig) -> str | None:
    """Digest of the BERT's weights that stage 1 starts from; None from scratch.

    Raises:
        ConfigError: they cannot be had, or cannot read so long captions.
    """
    if config.base == SCRATCH:
        return None
    model, has_head = load_bert(config.base)
    longest = config.lasting["max_text_tokens"]
    check_text_length(longest, model.config.max_position_embeddings)
    return weights_digest(model if has_head else model.bert)  # a head that was not there is chance


def planned_size(config: StartConfig, vision_width: int) -> QFormerConfig:
    """The size that stage 1 will have, without its weights; the vocabulary is taken as full.

    Args:
        config: see there.
        vision_width: C

    Raises:
        ConfigError: the shape of what it starts from cannot be had, or is for other image tokens.
    """
    if config.init is not None:
        size = size_from_checkpoint(config, Checkpoint.open(config.init, 1))
        if size.vision_width != vision_width:
            raise ConfigError(
                f"init: {config.init} was trained on image tokens {size.vision_width} wide; the "
                f"encoder's are {vision_width}"
            )
        return size
    if config.base == SCRATCH:
        return _size(config, config.vocab_size or VOCAB_SIZE, vision_width, None)
    shape = bert_shape(config.base)
    return _size(config, shape.vocab_size + 1, vision_width, shape)  # [DEC]


def _check_tokenizer(config: StartConfig, tokenizer: CaptionTokenizer, bert: Bert) -> None:
    """Raises ConfigError where it is not that of the checkpoint."""
    vocab_size = bert[0].config.vocab_size
    if len(tokenizer) < vocab_size / 2:  # transformers makes an empty one if there is none
        raise ConfigError(
            f"start: {config.base}: its tokenizer has {len(tokenizer)} words, its model "
            f"{vocab_size}"
        )


def _size(
    config: StartConfig, vocab_size: int, vision_width: int, bert: BertConfig | None
) -> QFormerConfig:
    width = config.width or 768
    chosen = config.lasting
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
        **{name: chosen[name] for name in _DEFAULTS if name != "start"},
        **shape,
    )
