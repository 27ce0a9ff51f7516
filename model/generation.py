"""Captions out of stage 1's caption head: greedy, or by nucleus sampling."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.stage1 import Stage1
from pipeline.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How captions are written."""

    method: Literal["beam", "nucleus", "greedy"] = "beam"
    num_beams: int = 3
    top_p: float = 0.9
    min_tokens: int = 10
    max_tokens: int = 30
    repetition_penalty: float = 1.0
    num_captions: int = 1
    seed: int = 0


@torch.inference_mode()
def write_captions(
    stage1: Stage1,
    tokens: Float[Tensor, "B P C"],
    *,
    max_tokens: int = 30,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> list[str]:
    """A caption for each picture.

    The picture is looked at once; each token adds its keys and values to those of the queries.

    Args:
        stage1: in eval mode.
        tokens: image tokens as cached.
        max_tokens: words pieces at most, [DEC] apart.
        top_p: draw from the smallest set of tokens that holds this share of the probability; None
            takes the most probable token each time.
        generator: of the draws, on the CPU.

    Raises:
        ConfigError: there are not so many positions.
    """
    if max_tokens > stage1.config.max_positions:
        raise ConfigError(
            f"max_tokens: {max_tokens}, but there are {stage1.config.max_positions} positions"
        )
    tokenizer = stage1.tokenizer
    _, past = stage1.qformer.see(stage1.image_keys(tokens))
    last = torch.full((len(tokens), 1), tokenizer.dec, device=tokens.device)
    written = last[:, :0]
    ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    for length in range(1, max_tokens + 1):
        present = torch.ones(len(tokens), length, dtype=torch.bool, device=tokens.device)
        logits, past = stage1.qformer.write(past, last, present)
        logits[:, -1, _never(stage1)] = float("-inf")
        chosen = _choose(logits[:, -1].float(), top_p, generator)
        last = chosen.masked_fill(ended, tokenizer.sep)[:, None]
        written = torch.cat([written, last], dim=1)
        ended |= last[:, 0] == tokenizer.sep
        if ended.all():
            break
    return [tokenizer.decode(row) for row in written.tolist()]


def _never(stage1: Stage1) -> list[int]:
    """Tokens that no caption holds."""
    tokenizer = stage1.tokenizer
    return [tokenizer.pad, tokenizer.cls, tokenizer.dec]


def _choose(
    logits: Float[Tensor, "B V"], top_p: float | None, generator: torch.Generator | None
) -> Int[Tensor, " B"]:
    if top_p is None:
        return logits.argmax(dim=1)
    shares, order = logits.softmax(dim=1).sort(dim=1, descending=True)
    outside = shares.cumsum(dim=1) - shares >= top_p
    shares = shares.masked_fill(outside, 0)
    drawn = torch.multinomial(shares.cpu(), 1, generator=generator).to(order.device)
    return order.gather(1, drawn)[:, 0]
