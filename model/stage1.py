"""Stage 1: the Q-Former learns to see what a caption says (BLIP-2, section 3.2).

One step: the queries look at the pictures once; text is read once; ITC compares the two, ITM looks
at pairs and at drawn non-pairs, ITG writes the captions after what the queries kept.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Float64, Int, Shaped
from torch import Tensor, nn

from model.objectives import (
    caption_loss,
    caption_targets,
    contrastive_loss,
    draw_negatives,
    match_loss,
    same_pairs,
    similarity,
)
from model.qformer import ImageKeys, QFormer, QFormerConfig, init_std, initialise
from model.ranks import gathered, mean_over_ranks, num_ranks, rank
from model.text import CaptionTokenizer
from pipeline.errors import ConfigError

TEMPERATURE_RANGE = (0.001, 0.5)
"""The learned temperature is kept between these; ALBEF, BLIP's origin, does likewise."""


@dataclass(frozen=True, kw_only=True)
class ObjectivesConfig:
    """The objectives of stage 1."""

    label_smoothing: float = 0.1
    """Share of each target of ITC and ITG spread over all candidates."""

    gather_gradient: bool = True
    """Let ITC's gradient reach pairs on other ranks; without it, it comes out too short."""

    itg_joins_at: float = 0.0
    """Share of the steps after which ITG joins; the paper's is 0. In short runs from scratch ITC
    learns faster, and a step costs less, while it is alone."""

    itm_joins_at: float = 0.0
    """Share of the steps after which ITM joins; the paper's is 0. In short runs ITM stays at its
    prior unless ITC has begun to tell pictures apart: 0.2 is a good start there."""

    itm_hardens_until: float = 0.0
    """Share of the steps after which ITM's negatives are as hard as ITC can find; from the moment
    it joins until then they turn so from chance. The paper's is 0, hard at once; above 1 they
    never quite get there, which very short runs need."""

    def __post_init__(self) -> None:
        for name in ("label_smoothing", "itg_joins_at", "itm_joins_at"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not in [0, 1]")
        if not 0 <= self.itm_hardens_until < math.inf:
            raise ConfigError(f"itm_hardens_until: {self.itm_hardens_until} is not in [0, inf)")

    def has_itg(self, step: int, steps: int) -> bool:
        """Whether ITG has joined at a step."""
        return step >= self.itg_joins_at * steps

    def itm_hardness(self, step: int, steps: int) -> float | None:
        """Hardness of ITM's negatives at a step; None before ITM joins."""
        joins, until = self.itm_joins_at * steps, self.itm_hardens_until * steps
        if step < joins:
            return None
        return 1.0 if step >= until else (step - joins) / (until - joins)


Draw = tuple[Int[Tensor, " B"], Bool[Tensor, " B"]]
"""For each pair a negative among the pairs of all ranks, and whether it has one."""


@dataclass(frozen=True)
class Stage1Batch:
    """Pairs of one rank."""

    tokens: Float[Tensor, "B P C"]
    """As cached: before `ln_vision`, in the cache's type."""
    ids: Int[Tensor, "B T"]
    present: Bool[Tensor, "B T"]
    picture: Int[Tensor, " B"]
    """A key, equal where pictures are."""
    caption: Int[Tensor, " B"]
    """A key, equal where captions are."""

    def to(self, device: Any) -> "Stage1Batch":
        """The batch on another device."""
        moved = (value.to(device, non_blocking=True) for value in vars(self).values())
        return Stage1Batch(*moved)


class Stage1(nn.Module):
    """The Q-Former with `ln_vision`, the contrastive projections and the ITM head.

    Args:
        config: of the Q-Former.
        tokenizer: of its text.
    """

    def __init__(self, config: QFormerConfig, tokenizer: CaptionTokenizer) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.ln_vision = nn.LayerNorm(config.vision_width, eps=config.vision_norm_eps)
        self.qformer = QFormer(config)
        self.vision_proj = nn.Linear(config.width, config.embed_dim)
        self.text_proj = nn.Linear(config.width, config.embed_dim)
        self.itm_head = nn.Linear(config.width, 2)
        self.temperature = nn.Parameter(torch.tensor(0.07))
        for layer in (self.vision_proj, self.text_proj, self.itm_head):
            initialise(layer, init_std(config.width))

    def bound_temperature(self) -> None:
        """Keep the temperature in its range; to be called after each update."""
        with torch.no_grad():
            self.temperature.clamp_(*TEMPERATURE_RANGE)

    def image_keys(self, tokens: Float[Tensor, "B P C"]) -> ImageKeys:
        """What cross-attention sees of the pictures, once for all its uses."""
        return self.qformer.image_keys(self.ln_vision(tokens.float()))

    def forward(
        self,
        batch: Stage1Batch,
        objectives: ObjectivesConfig,
        itm_hardness: float | None,
        uniform: Float64[Tensor, "2 G"],
        *,
        with_itg: bool = True,
    ) -> dict[str, Tensor]:
        """The losses of this rank's pairs; their mean over the ranks is that of all pairs.

        Args:
            batch: of this rank.
            objectives: see there.
            itm_hardness: of ITM's negatives; None leaves ITM out.
            uniform: numbers in [0, 1) that draw the negative picture and the negative caption of
                each pair of all ranks; alike on all ranks.
            with_itg: whether ITG has joined.

        Returns:
            `loss`, the sum of those that have joined, and beside it, without gradient: `itc`,
            `itm`, `itg`, `itc_unsmoothed`, `itg_unsmoothed`, in nats, and `itm_accuracy`.
        """
        image_keys = self.image_keys(batch.tokens)
        queries, kept = self.qformer.see(image_keys)
        text = self.qformer.read(batch.ids, batch.present)
        smoothing = objectives.label_smoothing

        image = F.normalize(self.vision_proj(queries), dim=-1)
        words = F.normalize(self.text_proj(text[:, 0]), dim=-1)
        share = objectives.gather_gradient
        all_image, all_words = gathered(image, gradient=share), gathered(words, gradient=share)
        sim_i2t = similarity(image, all_words) / self.temperature
        sim_t2i = similarity(all_image, words).T / self.temperature
        same = same_pairs(
            batch.picture,
            batch.caption,
            all_picture=gathered(batch.picture, gradient=False),
            all_caption=gathered(batch.caption, gradient=False),
        )
        first = rank() * len(batch.ids)
        directions = [
            contrastive_loss(scores, same, first=first, label_smoothing=smoothing)
            for scores in (sim_i2t, sim_t2i)
        ]
        itc, itc_unsmoothed = (sum(parts) / 2 for parts in zip(*directions, strict=True))

        losses = {"itc": itc, "itc_unsmoothed": itc_unsmoothed}
        loss = itc
        if with_itg:
            logits, _ = self.qformer.write(kept, self._to_write(batch.ids), batch.present)
            targets = caption_targets(batch.ids, batch.present)
            total, plain, count = caption_loss(logits, targets, label_smoothing=smoothing)
            losses["itg"] = mean_over_ranks(total, count)
            losses["itg_unsmoothed"] = mean_over_ranks(plain, count)
            loss = loss + losses["itg"]
        else:
            loss = loss + _untouched(self.qformer.head)
        if itm_hardness is not None:
            mine = uniform[:, first : first + len(batch.ids)].to(sim_i2t.device)
            draws = [
                draw_negatives(scores.detach(), same, hardness=itm_hardness, uniform=u)
                for scores, u in zip((sim_t2i, sim_i2t), mine, strict=True)
            ]
            total, right, count = match_loss(*self.match(batch, image_keys, *draws))
            losses["itm"] = mean_over_ranks(total, count)
            losses["itm_accuracy"] = mean_over_ranks(right.float(), count)
            loss = loss + losses["itm"]
        else:
            loss = loss + _untouched(self.itm_head)
        return {"loss": loss} | {name: value.detach() for name, value in losses.items()}

    def match(
        self, batch: Stage1Batch, image_keys: ImageKeys, pictures: Draw, texts: Draw
    ) -> tuple[Float[Tensor, "N 2"], Int[Tensor, " N"], Bool[Tensor, " N"]]:
        """ITM over pairs, drawn pictures with the texts, drawn texts with the pictures: N = 3 B.

        Args:
            batch: of this rank.
            image_keys: of its pictures.
            pictures, texts: for each pair a negative among those of all ranks, and whether it has
                one (`draw_negatives`).

        Returns:
            Scores, labels (1 is matched), and which of the N count.
        """
        (drawn_pictures, has_picture), (drawn_texts, has_text) = pictures, texts
        if num_ranks() == 1:
            drawn_keys = [(k[drawn_pictures], v[drawn_pictures]) for k, v in image_keys]
        else:
            drawn_keys = self.image_keys(gathered(batch.tokens, gradient=False)[drawn_pictures])
        keys = [
            (torch.cat([k, drawn_k, k]), torch.cat([v, drawn_v, v]))
            for (k, v), (drawn_k, drawn_v) in zip(image_keys, drawn_keys, strict=True)
        ]
        num_pairs = len(batch.ids)
        own = torch.arange(num_pairs, device=drawn_texts.device) + rank() * num_pairs
        rows = torch.cat([own, own, drawn_texts])
        ids, present = (
            gathered(_widened(x, self.config.max_text_tokens), gradient=False)[rows]
            for x in (batch.ids, batch.present)
        )
        width = int(present.sum(dim=1).amax())
        logits = self.match_logits(keys, ids[:, :width], present[:, :width])
        labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        labels[:num_pairs] = 1
        return logits, labels, torch.cat([has_picture & has_text, has_picture, has_text])

    def match_logits(
        self, image_keys: ImageKeys, ids: Int[Tensor, "N T"], present: Bool[Tensor, "N T"]
    ) -> Float[Tensor, "N 2"]:
        """Scores of unmatched and matched: the ITM head on each query output, averaged."""
        outputs = self.qformer.see_and_read(image_keys, ids, present)
        return self.itm_head(outputs).mean(dim=1)

    @torch.inference_mode()
    def embed_pictures(self, tokens: Float[Tensor, "B P C"]) -> Float[Tensor, "B Q E"]:
        """Contrastive embeddings of the query outputs, L2-normalised."""
        outputs, _ = self.qformer.see(self.image_keys(tokens))
        return F.normalize(self.vision_proj(outputs), dim=-1)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "B E"]:
        """Contrastive embeddings of captions, L2-normalised."""
        ids, present = self.tokenizer.encode(texts, self.config.max_text_tokens)
        device = self.temperature.device
        outputs = self.qformer.read(ids.to(device), present.to(device))
        return F.normalize(self.text_proj(outputs[:, 0]), dim=-1)

    def _to_write(self, ids: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        """The text as ITG sees it: [DEC] in place of [CLS]."""
        return torch.cat([torch.full_like(ids[:, :1], self.tokenizer.dec), ids[:, 1:]], dim=1)


def _widened(values: Shaped[Tensor, "B T"], width: int) -> Shaped[Tensor, "B W"]:
    """Padded to one width, so that ranks with other longest captions can exchange them."""
    return F.pad(values, (0, width - values.shape[1]))


def _untouched(module: nn.Module | None) -> Tensor:
    """Zero, with a gradient of zero for each weight: ranks average the gradients of all."""
    weights = module.parameters() if module is not None else ()
    return 0 * torch.stack([weight.sum() for weight in weights]).sum()
