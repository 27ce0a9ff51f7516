"""Stage 2: query outputs, projected, are a soft prompt of a frozen language model.

BLIP-2, section 3.3. Trained are the queries' side of the Q-Former, `ln_vision`, the queries and one
linear projection; the language model stays as it is, in eval mode. What it reads and learns of the
captions is `model.language_text`'s.
"""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from model.language_text import IGNORED
from model.layers import INIT_STD, initialise
from model.precision import exact
from model.pretrained.language import LanguageModel
from model.qformer import QFormer, QFormerConfig
from model.ranks import over_mean_count, summed


@dataclass(frozen=True)
class Stage2Batch:
    """Pictures and captions of one rank."""

    tokens: Float[Tensor, "B P C"]
    ids: Int[Tensor, "B T"]
    """What the language model reads after the soft prompt (`language_text.language_batch`)."""
    present: Bool[Tensor, "B T"]
    targets: Int[Tensor, "B S"]
    """What it is to write; IGNORED where nothing is learned."""

    def pin_memory(self) -> "Stage2Batch":
        """The batch where a GPU can fetch it while the host goes on."""
        return Stage2Batch(*(value.pin_memory() for value in vars(self).values()))

    def to(self, device: Any) -> "Stage2Batch":
        """The batch on another device."""
        return Stage2Batch(*(value.to(device, non_blocking=True) for value in vars(self).values()))


class Stage2(nn.Module):
    """What trains in stage 2; the language model is passed in, and is no part of it.

    Args:
        config: of the Q-Former.
        language_width: L
    """

    def __init__(self, config: QFormerConfig, language_width: int) -> None:
        super().__init__()
        self.config = config
        self.ln_vision = nn.LayerNorm(config.vision_width, eps=config.vision_norm_eps)
        self.qformer = QFormer(config, with_text=False)
        self.projection = nn.Linear(config.width, language_width)
        initialise(self.projection, INIT_STD)

    def soft_prompt(self, tokens: Float[Tensor, "B P C"]) -> Float[Tensor, "B Q L"]:
        """What the language model reads of pictures."""
        image = self.qformer.image_keys(tokens, self.ln_vision)
        outputs, _ = self.qformer.see(image)
        return self.projection(outputs)

    def forward(self, batch: Stage2Batch, language: LanguageModel) -> dict[str, Tensor]:
        """The language model's loss on the captions.

        Returns:
            `loss` in nats a token, whose mean over the ranks is that over all tokens, and
            `weight`: their number on all ranks.
        """
        soft = self.soft_prompt(batch.tokens)
        scores = language.scores(soft, batch.ids, batch.present, batch.targets)
        total = F.cross_entropy(
            exact(scores).flatten(0, 1),
            batch.targets.flatten(),
            ignore_index=IGNORED,
            reduction="sum",
        )
        weight = summed((batch.targets != IGNORED).sum().to(total.dtype))
        return {"loss": over_mean_count(total, weight), "weight": weight}


def take_over(stage2: Stage2, stage1: dict[str, Tensor]) -> None:
    """Start the queries' side and `ln_vision` with the weights of a stage-1 checkpoint."""
    ours = stage2.state_dict()
    stage2.load_state_dict(
        {name: stage1.get(name, value) for name, value in ours.items()}, strict=True
    )
