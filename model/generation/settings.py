"""How captions and answers are written, by either stage."""

import math
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How captions are written; the defaults are those of BLIP-2's own stage 1.

    But its beam search ends when the best caption that still runs is, at its present length, no
    better than the worst of num_beams that have ended (transformers' early_stopping False): better
    ones could still come. Here it goes on until none can (`model.generation.beams`).
    """

    method: Literal["beam", "nucleus", "greedy"] = "beam"
    """`beam` looks for the captions of the highest mean log-probability a token; `nucleus` draws;
    `greedy` takes the most probable token each time."""

    num_beams: int = 3
    """Captions that beam search follows at once, for each picture; 1 is greedy."""

    top_p: float = 0.9
    """Nucleus sampling draws from the fewest tokens that hold this share of the probability."""

    min_tokens: int = 10
    """Fewest tokens of a caption, counted like the reference's min_length: the start token counts,
    the end token does not. So 10 is [DEC] and nine word pieces, then perhaps [SEP]."""

    max_tokens: int = 30
    """Most tokens of a caption, counted like the reference's max_length: the start token counts,
    and the end token if there is one. So 30 is [DEC], 28 word pieces and [SEP], or [DEC] and 29
    word pieces of a caption that was cut off."""

    repetition_penalty: float = 1.0
    """Scores of tokens already written are divided by this where positive and multiplied where
    negative, as in CTRL; 1 leaves them as they are, 1.2 is usual against repetition."""

    num_captions: int = 1
    """Captions a picture: the best ones of a beam search, at most num_beams, or so many draws."""

    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        if self.method not in ("beam", "nucleus", "greedy"):
            raise ConfigError(f"method: {self.method!r} is neither beam, nucleus nor greedy")
        for name in ("num_beams", "num_captions"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not positive")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p: {self.top_p} is not in (0, 1]")
        if self.max_tokens < 2:
            raise ConfigError(f"max_tokens: {self.max_tokens} leaves no token after the first")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise ConfigError(
                f"min_tokens: {self.min_tokens} is not in 0 to max_tokens={self.max_tokens}"
            )
        if not 0 < self.repetition_penalty < math.inf:
            raise ConfigError(f"repetition_penalty: {self.repetition_penalty} is not in (0, inf)")
        if self.method == "greedy" and self.num_captions > 1:
            raise ConfigError(f"num_captions: {self.num_captions}, but greedy writes only one")
        if self.method == "beam" and self.num_captions > self.num_beams:
            raise ConfigError(f"num_captions: {self.num_captions}, but num_beams={self.num_beams}")
        if not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"seed: {self.seed} is not in 0 to 2^63 - 1")
