"""BLIP-2 folders of transformers: read under our names, and written so that they load there.

Stage 1 is `Blip2ForImageTextRetrieval`, stage 2 `Blip2ForConditionalGeneration` (or `Blip2Model`,
which has the same weights).
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import (
    AutoConfig,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2Processor,
    PreTrainedTokenizerFast,
)

from model.foreign_weights import ForeignWeights, config_of
from model.pretrained.image_transforms import image_processor
from model.pretrained.language import LanguageModel
from model.pretrained.vision_tower import PREFIX, VisionTower, is_frozen
from model.pretrained.weight_files import read_tensors
from model.qformer import QFormerConfig
from model.stage1 import Stage1
from model.stage2 import Stage2
from model.tokenizer import CLS, DEC, MASK, PAD, SEP, UNKNOWN, CaptionTokenizer
from model.weight_names import TRANSFORMERS, renamed, under_their_names
from pipeline.errors import ConfigError, first_line

STAGES = {
    "Blip2ForImageTextRetrieval": 1,
    "Blip2ForConditionalGeneration": 2,
    "Blip2Model": 2,
}
IMAGE = "<image>"
"""Stands for a query output among the tokens."""

LACKING = {"temperature": "the temperature", "qformer.head.": "the caption head"}
"""Of stage 1, by our names."""

_POSITIONS = (r"embeddings\.position_ids", "counts from 0")
_TEXT = (
    r"qformer\.encoder\.layer\.\d+\."
    r"(intermediate\.dense|output\.(dense|LayerNorm))\.(weight|bias)",
    "of text; stage 2 reads none",
)


def read_config(folder: Path) -> Blip2Config:
    """The configuration of a BLIP-2 folder.

    Raises:
        ConfigError: it is of another model.
    """
    try:
        config: Any = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder}: is no folder of transformers ({first_line(error)})"
        ) from error
    made = (config.architectures or ["nothing"])[0]
    if config.model_type != "blip-2" or made not in STAGES:
        raise ConfigError(f"{folder}: is a {made}; one of {', '.join(STAGES)} is needed")
    if config.qformer_config.hidden_act != "gelu":
        raise ConfigError(
            f"{folder}: qformer_config.hidden_act is {config.qformer_config.hidden_act!r}, not gelu"
        )
    return config


def read_hugging_face(folder: Path) -> tuple[dict[str, Tensor], list[str]]:
    """What trains of a BLIP-2 folder by the names of transformers, and the names of the rest."""
    return read_tensors(folder, lambda name: not is_kept_frozen(name))


def is_kept_frozen(name: str) -> bool:
    """Whether a weight is of the vision tower or of the language model."""
    return is_frozen(name) or name.startswith("language_model.")


def from_hugging_face(
    theirs: Mapping[str, Tensor], config: Blip2Config, beside: dict[str, Tensor]
) -> ForeignWeights:
    """The names of transformers to ours, stage 1 or 2.

    Args:
        theirs: from `read_hugging_face`.
        config: from `read_config`.
        beside: what was kept beside of a checkpoint that was exported, under our names.

    Raises:
        ConfigError: a weight is unexpected or missing.
    """
    stage = STAGES[(config.architectures or [""])[0]]
    ours, left_out = renamed(theirs, TRANSFORMERS, [_POSITIONS, *([_TEXT] if stage == 2 else [])])
    its: Any = config.qformer_config
    vision: Any = config.vision_config
    known = {
        "num_layers": its.num_hidden_layers,
        "num_heads": its.num_attention_heads,
        "cross_attention_every": its.cross_attention_frequency,
        "dropout": its.hidden_dropout_prob,
        "layer_norm_eps": its.layer_norm_eps,
        "vision_norm_eps": vision.layer_norm_eps,
    }
    lacking = tuple(
        start
        for start in (LACKING if stage == 1 else ())
        if not any(name.startswith(start) for name in beside)
    )
    return ForeignWeights(
        stage, config_of(ours, TRANSFORMERS, known), ours | beside, TRANSFORMERS, lacking, left_out
    )


def to_hugging_face(ours: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Our names to those of transformers, and under our names what they have no place for.

    Args:
        ours: the state dict of a `Stage1` or `Stage2`.
    """
    return under_their_names(ours, TRANSFORMERS)


# Whole models, for `from_pretrained`


def retrieval_model(
    stage1: Stage1, tower: VisionTower, transform: Mapping[str, Any]
) -> tuple[Blip2ForImageTextRetrieval, Blip2Processor]:
    """Stage 1 and its vision tower in transformers; temperature and caption head have no place.

    Args:
        stage1: see there.
        tower: its encoder.
        transform: of pictures, in timm's words.
    """
    tokenizer = _bert_tokenizer(stage1.tokenizer, stage1.config.max_positions)
    num_queries = stage1.config.num_queries
    processor: Any = Blip2Processor(
        image_processor(transform), tokenizer, num_query_tokens=num_queries
    )
    qformer = _qformer_config(stage1.config) | {
        "use_qformer_text_input": True,
        "pad_token_id": stage1.tokenizer.pad,
    }
    config = Blip2Config(
        vision_config=tower.config.to_dict(),
        qformer_config=qformer,
        num_query_tokens=num_queries,
        image_text_hidden_size=stage1.config.embed_dim,
        image_token_index=processor.tokenizer.convert_tokens_to_ids(IMAGE),
    )
    tensors, _ = to_hugging_face(stage1.state_dict())
    return _made(Blip2ForImageTextRetrieval, config, tensors | _frozen(tower)), processor


def generation_model(
    stage2: Stage2, language: LanguageModel, tower: VisionTower, transform: Mapping[str, Any]
) -> tuple[Blip2ForConditionalGeneration, Blip2Processor]:
    """Stage 2, its vision tower and its language model in transformers.

    Args:
        stage2: see there.
        language: its language model. Where it has no row to spare for the token that stands for a
            query output, it gets one, whose score is 0 at all times.
        tower: its encoder.
        transform: of pictures, in timm's words.
    """
    num_queries = stage2.config.num_queries
    processor: Any = Blip2Processor(
        image_processor(transform), copy.deepcopy(language.tokenizer), num_query_tokens=num_queries
    )
    image = processor.tokenizer.convert_tokens_to_ids(IMAGE)
    _make_room(language, image + 1)
    text_config = copy.deepcopy(language.model.config)
    text_config.eos_token_id = language.end
    config = Blip2Config(
        vision_config=tower.config.to_dict(),
        qformer_config=_qformer_config(stage2.config),
        text_config=text_config,
        num_query_tokens=num_queries,
        image_text_hidden_size=stage2.config.embed_dim,
        image_token_index=image,
    )
    tensors, _ = to_hugging_face(stage2.state_dict())
    words = language.model.state_dict()
    tensors |= {f"language_model.{name}": value for name, value in words.items()}
    return _made(Blip2ForConditionalGeneration, config, tensors | _frozen(tower)), processor


def folder_tokenizer(folder: Path) -> CaptionTokenizer:
    """The Q-Former's tokenizer in a folder of stage 1, without the token for query outputs.

    Raises:
        ConfigError: there is none, or it is no BERT's.
    """
    return CaptionTokenizer.of_model(f"hf:{folder}", without=(IMAGE,))


def _qformer_config(config: QFormerConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.feed_forward_width,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        "max_position_embeddings": config.max_positions,
        "layer_norm_eps": config.layer_norm_eps,
        "cross_attention_frequency": config.cross_attention_every,
    }


def _frozen(tower: VisionTower) -> dict[str, Tensor]:
    return {PREFIX + name: value for name, value in tower.state_dict().items()}


def _made(kind: type, config: Blip2Config, tensors: Mapping[str, Tensor]) -> Any:
    """A model of transformers with these weights, to be saved; each of its own is among them."""
    with torch.device("meta"):
        model = kind(config)
    model.load_state_dict(dict(tensors), strict=True, assign=True)
    return model.eval()


def _bert_tokenizer(tokenizer: CaptionTokenizer, max_tokens: int) -> PreTrainedTokenizerFast:
    backend = Tokenizer.from_str(tokenizer.to_json())
    roles = {"pad": PAD, "unk": UNKNOWN, "cls": CLS, "sep": SEP, "mask": MASK, "bos": DEC}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=max_tokens,
        **{f"{role}_token": t for role, t in roles.items() if backend.token_to_id(t) is not None},
    )


@torch.no_grad()
def _make_room(language: LanguageModel, rows: int) -> None:
    """Give the language model at least so many rows; those that are new are zero."""
    model = language.model
    words, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    have = len(words)
    if have >= rows:
        return
    model.resize_token_embeddings(rows, mean_resizing=False)
    if head is not words:  # or a T5 whose head is another's would get its words in its place
        model.get_output_embeddings().weight = nn.Parameter(
            F.pad(head, (0, 0, 0, rows - have)), requires_grad=False
        )
    for embeddings in (model.get_input_embeddings(), model.get_output_embeddings()):
        for value in embeddings.parameters():
            value[have:] = 0
