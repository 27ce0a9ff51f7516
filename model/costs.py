"""What the models compute and hold, counted by PyTorch on the meta device: no weight is there.

Operations are those of matrix products, convolutions and attention, a multiplication and an
addition each; masked positions count as computed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, Blip2VisionConfig

from model.objectives import ObjectivesConfig
from model.packing import Repeated, Texts
from model.pretrained.architectures import language_shape
from model.pretrained.image_tokens import checked_tokens, is_vit
from model.pretrained.vision_tower import VisionTower
from model.qformer import QFormerConfig, Seen
from model.stage1 import Stage1, Stage1Batch
from model.stage2 import Stage2
from pipeline.errors import ConfigError, first_line

META = torch.device("meta")
_PAIRS = 8
"""Over which a step is counted; what of ITC grows with their number is next to nothing."""


@dataclass(frozen=True)
class EncoderCost:
    """Of a frozen vision encoder."""

    num_tokens: int
    """P"""
    width: int
    """C"""
    parameters: int
    """Of all its blocks, those too that come after the layer taken."""
    flops: int
    """Of a picture."""


@dataclass(frozen=True)
class TrainCost:
    """Of a stage, in training."""

    parameters: int
    """Trained ones."""
    frozen_parameters: int
    """Of the language model."""
    flops: float
    """Of a pair, forward and backward, where one rank trains alone."""
    flops_of_ranks: float
    """The same where several do: what ITM draws comes from other ranks, so that the pictures' keys
    and values and the texts' first layer are computed once more."""


@dataclass(frozen=True)
class EmbedCost:
    """Of contrastive embeddings, forward."""

    picture: float
    caption: float
    """Operations."""


@dataclass(frozen=True)
class MatchCost:
    """Of ITM over pictures and their candidates, forward."""

    picture: float
    """Its keys and values, once for all its texts."""
    pair: float
    """A text and a picture that see each other."""


def empty_encoder(name: str) -> tuple[Any, tuple[int, int, int]]:
    """An encoder on the meta device in eval mode, and the size of its input.

    Args:
        name: as `EncoderConfig.encoder`.

    Raises:
        ConfigError: there is none of that name.
    """
    kind, _, rest = name.partition(":")
    rest = "tf_efficientnet_lite0" if name == "offline:efficientnet_lite0" else rest
    try:
        with META:
            if kind == "hf" and rest:
                config: Any = Blip2VisionConfig.from_pretrained(rest)
                return VisionTower(config).eval(), (3, config.image_size, config.image_size)
            if kind in ("timm", "offline"):
                backbone = timm.create_model(rest, pretrained=False, num_classes=0).eval()
                return backbone, timm.data.resolve_model_data_config(backbone)["input_size"]
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ConfigError(f"encoder: {name} cannot be had ({first_line(error)})") from error
    raise ConfigError(f"encoder: {name!r} is neither timm:NAME, hf:NAME_OR_FOLDER nor offline:NAME")


def encoder_cost(name: str, layer: int) -> EncoderCost:
    """What an encoder costs up to the layer taken.

    Args:
        name: as `EncoderConfig.encoder`.
        layer: of a ViT, as `EncoderConfig.layer`.

    Raises:
        ConfigError: there is none of that name, or it gives no tokens.
    """
    backbone, size = empty_encoder(name)
    if is_vit(backbone) and not -len(backbone.blocks) <= layer < 0:
        raise ConfigError(f"layer: {layer}, but the encoder has {len(backbone.blocks)} blocks")
    flops, tokens = tokens_flops(name, backbone, size, layer)
    _, num_tokens, width = tokens.shape
    return EncoderCost(num_tokens, width, parameters_of(backbone), flops)


def tokens_flops(
    name: str, backbone: Any, size: tuple[int, int, int], layer: int
) -> tuple[int, Tensor]:
    """Operations of one picture's tokens, and these tokens, on the meta device.

    Raises:
        ConfigError: it gives none; `name` is named.
    """
    picture = torch.empty(1, *size, device=META)
    return counted(lambda: checked_tokens(name, backbone.requires_grad_(False), picture, layer))


def stage1_cost(config: QFormerConfig, num_tokens: int, caption_tokens: int) -> TrainCost:
    """A step of stage 1 with all three objectives.

    Args:
        config: of the Q-Former.
        num_tokens: P, image tokens a picture.
        caption_tokens: of each caption, [CLS] and [SEP] included.
    """
    with META:
        stage1 = Stage1(config, tokenizer=None)  # type: ignore[arg-type]  # only texts need one
        batch = stage1_batch(config, _PAIRS, num_tokens, caption_tokens)
        uniform = torch.empty(2, _PAIRS, dtype=torch.float64)
        flops, _ = counted(
            lambda: stage1(batch, ObjectivesConfig(), 1.0, uniform)["loss"].backward()
        )
        keys, _ = counted(lambda: _summed(stage1.image_keys(batch.tokens)).backward())
        own, drawn = (
            _matched_flops(stage1, batch, caption_tokens, num) for num in (_PAIRS, 2 * _PAIRS)
        )
    of_ranks = flops + keys + drawn - own
    return TrainCost(parameters_of(stage1), 0, flops / _PAIRS, of_ranks / _PAIRS)


def _matched_flops(
    stage1: Stage1, batch: Stage1Batch, caption_tokens: int, num_distinct: int
) -> int:
    """Of ITM in training, if its three texts a pair are so many different ones in all."""
    num = 3 * len(batch.tokens)
    texts, distinct = (
        stage1_batch(stage1.config, count, 1, caption_tokens).texts for count in (num, num_distinct)
    )
    repeated = Repeated(distinct, torch.zeros(num, dtype=torch.long))

    def match() -> None:
        keys = stage1.image_keys(batch.tokens)
        logits = stage1.match_logits([Seen(keys, times=2), Seen(keys)], texts, repeated)
        logits.sum().backward()

    flops, _ = counted(match)
    return flops


def stage1_batch(
    config: QFormerConfig, num_pairs: int, num_tokens: int, caption_tokens: int
) -> Stage1Batch:
    """Pairs with captions of one length on the default device; its values mean nothing."""

    def texts(width: int) -> Texts:
        ids = torch.ones(num_pairs, width, dtype=torch.long)
        return Texts(ids, ids > 0, torch.arange(num_pairs * width))

    written = caption_tokens - 1
    tokens = torch.zeros(num_pairs, num_tokens, config.vision_width, dtype=torch.float16)
    targets = torch.ones(num_pairs * written, dtype=torch.long)
    keys = torch.arange(num_pairs)
    return Stage1Batch(tokens, texts(caption_tokens), texts(written), targets, keys, keys)


def stage2_cost(
    config: QFormerConfig, language: str, num_tokens: int, caption_tokens: int
) -> TrainCost:
    """A step of stage 2.

    Args:
        config: of the Q-Former.
        language: as `LanguageConfig.language_model`.
        num_tokens: P, image tokens a picture.
        caption_tokens: that the language model reads and writes of each caption.

    Raises:
        ConfigError: the language model's shape cannot be had.
    """
    shape = language_shape(language)
    kind: Any = AutoModelForSeq2SeqLM if shape.is_encoder_decoder else AutoModelForCausalLM
    with META:
        # Its other attentions look into the mask, which has no values here.
        model = kind.from_config(shape, attn_implementation="eager").requires_grad_(False).eval()
        width = model.get_input_embeddings().embedding_dim
        stage2 = Stage2(config, width)
        tokens = torch.zeros(_PAIRS, num_tokens, config.vision_width, dtype=torch.float16)

        def step() -> None:
            _language_scores(model, stage2.soft_prompt(tokens), caption_tokens).sum().backward()

        flops, _ = counted(step)
    its = flops / _PAIRS
    return TrainCost(parameters_of(stage2), parameters_of(model), its, its)


def _language_scores(model: Any, soft_prompt: Tensor, caption_tokens: int) -> Tensor:
    """As `LanguageModel.scores`, for captions without padding.

    What an encoder-decoder's encoder reads is a quarter of a caption on average: the split is drawn
    between its first token and its middle.
    """
    num = len(soft_prompt)
    if model.config.is_encoder_decoder:
        read = max(1, caption_tokens // 4)
        rest = {"decoder_input_ids": _ones(num, caption_tokens - read + 1)}  # and the end
    else:
        read = caption_tokens
        rest = {"attention_mask": _ones(num, soft_prompt.shape[1] + read)}
    words = model.get_input_embeddings()(_ones(num, read))
    embeds = torch.cat([soft_prompt, words.to(soft_prompt.dtype)], dim=1)
    scores: Tensor = model(inputs_embeds=embeds, use_cache=False, **rest).logits
    return scores


def _ones(num: int, width: int) -> Tensor:
    return torch.ones(num, width, dtype=torch.long)


def embed_cost(config: QFormerConfig, num_tokens: int, caption_tokens: int) -> EmbedCost:
    """Contrastive embeddings of a picture and of a caption.

    Args:
        config, num_tokens, caption_tokens: as `stage1_cost`.
    """
    with META:
        stage1 = Stage1(config, tokenizer=None).requires_grad_(False)  # type: ignore[arg-type]
        batch = stage1_batch(config, _PAIRS, num_tokens, caption_tokens)
        pictures, _ = counted(lambda: stage1.embed_pictures(batch.tokens))
        captions, rows = counted(lambda: stage1.qformer.read(batch.texts))
        heads, _ = counted(lambda: stage1.text_proj(rows[:_PAIRS]))
    return EmbedCost(pictures / _PAIRS, (captions + heads) / _PAIRS)


def match_cost(config: QFormerConfig, num_tokens: int, caption_tokens: int) -> MatchCost:
    """ITM of a picture with texts.

    Args:
        config, num_tokens, caption_tokens: as `stage1_cost`.
    """
    with META:
        stage1 = Stage1(config, tokenizer=None).requires_grad_(False)  # type: ignore[arg-type]
        batch = stage1_batch(config, _PAIRS, num_tokens, caption_tokens)
        pictures, keys = counted(lambda: stage1.image_keys(batch.tokens))
        pairs, _ = counted(lambda: stage1.match_logits([Seen(keys)], batch.texts))
    return MatchCost(pictures / _PAIRS, pairs / _PAIRS)


def counted(run: Callable[[], Any]) -> tuple[int, Any]:
    """Operations of a call, and what it returns."""
    with FlopCounterMode(display=False) as counter:
        returned = run()
    return counter.get_total_flops(), returned


def parameters_of(module: nn.Module) -> int:
    """How many, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def _summed(keys: Any) -> Tensor:
    return torch.stack([part.sum() for pair in keys for part in pair]).sum()
