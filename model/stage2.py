"""Stage 2: query outputs, projected, are a soft prompt of a frozen language model.

BLIP-2, section 3.3. Trained are the queries' side of the Q-Former, `ln_vision`, the queries and one
linear projection; the language model stays as it is, in eval mode.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from model.language import LanguageModel
from model.objectives import IGNORED
from model.qformer import INIT_STD, QFormer, QFormerConfig, initialise
from model.ranks import mean_over_ranks
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class Stage2Batch:
    """Pictures and captions of one rank."""

    tokens: Float[Tensor, "B P C"]
    ids: Int[Tensor, "B T"]
    """Prompt, caption and end token, of the language model's tokenizer."""
    present: Bool[Tensor, "B T"]
    targets: Int[Tensor, "B T"]
    """`ids` where they are to be learned; IGNORED on the prompt and on padding."""

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
        image = self.qformer.image_keys(self.ln_vision(tokens.float()))
        outputs, _ = self.qformer.see(image)
        return self.projection(outputs)

    def forward(self, batch: Stage2Batch, language: LanguageModel) -> dict[str, Tensor]:
        """The language model's loss on the captions.

        Returns:
            `loss` in nats a token; its mean over the ranks is that over all tokens.
        """
        prompt = self.soft_prompt(batch.tokens)
        words = language.model.get_input_embeddings()(batch.ids)
        seen = torch.cat([batch.present.new_ones(prompt.shape[:2]), batch.present], dim=1)
        logits = language.model(
            inputs_embeds=torch.cat([prompt.to(words.dtype), words], dim=1),
            attention_mask=seen.long(),
            use_cache=False,
        ).logits
        # The last query foretells the first token of the text, and so on.
        foretold = logits[:, prompt.shape[1] - 1 : -1].float()
        total = F.cross_entropy(
            foretold.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        return {"loss": mean_over_ranks(total, (batch.targets != IGNORED).sum())}

    @torch.inference_mode()
    def caption(
        self,
        tokens: Float[Tensor, "B P C"],
        language: LanguageModel,
        *,
        prompt: str = "",
        max_new_tokens: int = 30,
    ) -> list[str]:
        """What the language model says of each picture, greedily, after the prompt."""
        soft = self.soft_prompt(tokens)
        embed = language.model.get_input_embeddings()
        start = soft.to(embed.weight.dtype)
        ids = torch.tensor(language.prefix(prompt), dtype=torch.long, device=soft.device)
        start = torch.cat([start, embed(ids).expand(len(soft), -1, -1)], dim=1)
        written = language.model.generate(
            inputs_embeds=start,
            attention_mask=torch.ones(start.shape[:2], dtype=torch.long, device=soft.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=language.end,
            pad_token_id=language.end,
        )
        return [
            text.strip()
            for text in language.tokenizer.batch_decode(written, skip_special_tokens=True)
        ]


def caption_room(language: LanguageModel, prompt: str, max_tokens: int) -> int:
    """Tokens that are left for a caption between the prompt and the end token.

    Raises:
        ConfigError: none are.
    """
    room = max_tokens - len(language.prefix(prompt)) - 1
    if room < 1:
        raise ConfigError(
            f"max_language_tokens: {max_tokens} leaves no room for a caption after the prompt"
        )
    return room


def language_batch(
    language: LanguageModel, texts: Sequence[str], *, prompt: str, max_tokens: int
) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Captions for the language model: prompt, words, end token.

    A caption that is too long is cut before its end token, which is then not learned: nobody is to
    learn to stop in the middle of a sentence.

    Args:
        language: whose tokenizer is used.
        texts: captions.
        prompt: stands before each, and is not learned.
        max_tokens: T at most, the end token among them.

    Raises:
        ConfigError: the prompt leaves no room.

    Returns:
        Ids, which of them are no padding, and targets (see `Stage2Batch`).
    """
    prompt_ids = language.prefix(prompt)
    space = " " if prompt and not prompt.endswith(" ") else ""
    room = caption_room(language, prompt, max_tokens)
    words = [
        language.tokenizer(space + text, add_special_tokens=False)["input_ids"] for text in texts
    ]
    rows = [[*prompt_ids, *its[:room], language.end] for its in words]
    width = max(map(len, rows))
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.tensor([row + [language.end] * (width - len(row)) for row in rows])
    present = torch.arange(width) < lengths[:, None]
    targets = ids.masked_fill(~present, IGNORED)
    targets[:, : len(prompt_ids)] = IGNORED
    for number in [number for number, its in enumerate(words) if len(its) > room]:
        targets[number, lengths[number] - 1] = IGNORED
    return ids, present, targets


def take_over(stage2: Stage2, stage1: dict[str, Tensor]) -> None:
    """Start the queries' side and `ln_vision` with the weights of a stage-1 checkpoint."""
    ours = stage2.state_dict()
    stage2.load_state_dict(
        {name: stage1.get(name, value) for name, value in ours.items()}, strict=True
    )
