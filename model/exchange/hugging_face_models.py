"""Whole models of transformers with our weights, which load there with `from_pretrained`.

Each is built on the meta device and filled strictly, so it is whole or an error.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2Processor,
    PreTrainedTokenizerFast,
)

from model.exchange.hugging_face import IMAGE, to_hugging_face
from model.pretrained.image_transforms import image_processor
from model.pretrained.language import LanguageModel
from model.pretrained.vision_tower import PREFIX, VisionTower
from model.qformer import QFormerConfig
from model.stage1 import Stage1
from model.stage2 import Stage2
from model.tokenizer import CLS, DEC, MASK, PAD, SEP, UNKNOWN, CaptionTokenizer


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
