"""What a language model says of pictures after a prompt: captions and answers of stage 2."""

import math
from typing import Any

import torch
import transformers
from jaxtyping import Float, Float64, Int
from torch import Tensor

from model.generation.nucleus import draw_nucleus
from model.generation.settings import GenerationConfig
from model.language_text import check_positions, prompt_ids
from model.pretrained.language import LanguageModel
from model.stage2 import Stage2


@torch.inference_mode()
def write_texts(
    stage2: Stage2,
    language: LanguageModel,
    tokens: Float[Tensor, "B P C"],
    prompt: str,
    config: GenerationConfig,
    generator: torch.Generator | None = None,
) -> list[list[str]]:
    """Texts that go on from the soft prompt and the prompt; without these and without the end.

    The search is transformers' own. Lengths are counted as in stage 1: as if one token stood before
    the text, and without its end. The repetition penalty counts what was written, not the prompt.
    Draws are num_captions times max_tokens - 1 numbers a picture, so that a picture's texts depend
    on its neighbours in no way.

    Args:
        stage2: in eval mode.
        language: on the same device.
        tokens: image tokens as cached.
        prompt: read after the soft prompt, the same for all pictures.
        config: see there.
        generator: of nucleus sampling, on the CPU; None makes one from the seed in `config`.

    Returns:
        For each picture num_captions texts: of a beam search the most probable first.

    Raises:
        ConfigError: the language model has not so many positions.
    """
    if not len(tokens):
        return []
    soft = stage2.soft_prompt(tokens)
    ids = torch.tensor([prompt_ids(language, prompt)], dtype=torch.long, device=soft.device)
    num_tokens = ids.shape[1] + config.max_tokens - 1
    check_positions(language, soft.shape[1], num_tokens, "max_tokens")
    processors = transformers.LogitsProcessorList()
    if config.repetition_penalty != 1:
        processors.append(transformers.RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    if config.method == "nucleus":
        generator = generator or torch.Generator().manual_seed(config.seed)
        size = (len(soft) * config.num_captions, config.max_tokens - 1)
        uniform = torch.rand(size, generator=generator, dtype=torch.float64)
        processors.append(_Nucleus(config.top_p, uniform.to(soft.device)))
        soft = soft.repeat_interleave(config.num_captions, dim=0)
    ids = ids.expand(len(soft), -1)
    written = language.model.generate(
        **language.inputs(soft, ids, torch.ones_like(ids, dtype=torch.bool)),
        generation_config=_settings(language, config),
        logits_processor=processors,
    )
    texts = [_text(language, row) for row in written.tolist()]
    num = config.num_captions
    return [texts[first : first + num] for first in range(0, len(texts), num)]


def _settings(language: LanguageModel, config: GenerationConfig) -> transformers.GenerationConfig:
    """Ours in the words of transformers; draws are `_Nucleus`'s, so it only takes the best."""
    how: dict[str, Any] = {}
    if config.method == "beam" and config.num_beams > 1:
        how = {"num_beams": config.num_beams, "num_return_sequences": config.num_captions}
        how["early_stopping"] = "never"  # until no running text could get better
    return transformers.GenerationConfig(
        do_sample=False,
        min_new_tokens=max(0, config.min_tokens - 1),
        max_new_tokens=config.max_tokens - 1,
        eos_token_id=language.end,
        pad_token_id=language.end,
        **how,
    )


class _Nucleus(transformers.LogitsProcessor):
    """Draws the next token of each text, and leaves no other to choose.

    Args:
        top_p: see `draw_nucleus`.
        uniform: numbers in [0, 1), one for each token of each text.
    """

    def __init__(self, top_p: float, uniform: Float64[Tensor, "N T"]) -> None:
        self._top_p = top_p
        self._uniform = iter(uniform.T)

    def __call__(
        self, input_ids: Int[Tensor, "N S"], scores: Float[Tensor, "N V"]
    ) -> Float[Tensor, "N V"]:
        chosen = draw_nucleus(scores, next(self._uniform), self._top_p)
        return torch.full_like(scores, -math.inf).scatter(1, chosen[:, None], 0.0)


def _text(language: LanguageModel, ids: list[int]) -> str:
    if language.is_encoder_decoder:
        ids = ids[1:]  # what a decoder starts with
    end = ids.index(language.end) if language.end in ids else len(ids)
    return str(language.tokenizer.decode(ids[:end], skip_special_tokens=True)).strip()
