"""Stage 1: the Q-Former learns to see what a caption says (BLIP-2, section 3.2).

One step: in one pass the queries look at the pictures, text is read (ITC compares the two) and is
written after what the queries kept (ITG); in a second one pairs and drawn non-pairs look at each
other (ITM). Keys and values of a picture are computed once for both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from model.itc import contrastive_loss, same_pairs, similarity
from model.itg import caption_loss, to_write
from model.itm import draw_negatives, match_loss
from model.layers import init_std, initialise
from model.packing import Texts, joined
from model.qformer import ImageKeys, QFormer, QFormerConfig, Seen
from model.ranks import gathered, mean_over_ranks, num_ranks, rank
from model.tokenizer import CaptionTokenizer
from pipeline.errors import ConfigError

TEMPERATURE_RANGE = (0.001, 0.5)
"""The learned temperature is kept between these; ALBEF, BLIP's origin, does likewise."""


_LONG = 10_000
"""Steps from which a training has the paper's schedule."""


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

    itm_joins_at: float | None = None
    """Share of the steps after which ITM joins; by default the paper's 0 in trainings of 10,000
    steps or more, and 0.4 in shorter ones: there ITM stays at its prior unless ITC has begun to
    tell pictures apart."""

    itm_hardens_until: float | None = None
    """Share of the steps after which ITM's negatives are as hard as ITC can find; from the moment
    it joins until then they turn so from chance. By default the paper's 0, hard at once, in
    trainings of 10,000 steps or more, and 1 in shorter ones. Above 1 they never quite get there,
    which very short ones need."""

    def __post_init__(self) -> None:
        for name in ("label_smoothing", "itg_joins_at", "itm_joins_at"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not in [0, 1]")
        if not 0 <= (self.itm_hardens_until or 0) < math.inf:
            raise ConfigError(f"itm_hardens_until: {self.itm_hardens_until} is not in [0, inf)")

    def resolved(self, steps: int) -> "ObjectivesConfig":
        """With numbers in place of the defaults that depend on a training's steps."""
        joins, until = (0.0, 0.0) if steps >= _LONG else (0.4, 1.0)
        return replace(
            self,
            itm_joins_at=joins if self.itm_joins_at is None else self.itm_joins_at,
            itm_hardens_until=until if self.itm_hardens_until is None else self.itm_hardens_until,
        )

    def has_itg(self, step: int, steps: int) -> bool:
        """Whether ITG has joined at a step."""
        return step >= self.itg_joins_at * steps

    def itm_hardness(self, step: int, steps: int) -> float | None:
        """Hardness of ITM's negatives at a step; None before ITM joins."""
        its = self.resolved(steps)
        joins, until = cast(float, its.itm_joins_at), cast(float, its.itm_hardens_until)
        joins, until = joins * steps, until * steps
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
    texts: Texts
    """[CLS], words, [SEP]"""
    to_write: Texts
    """[DEC], words: what ITG writes of them."""
    targets: Int[Tensor, " W"]
    """The token that comes after each of `to_write`."""
    picture: Int[Tensor, " B"]
    """A key, equal where pictures are."""
    caption: Int[Tensor, " B"]
    """A key, equal where captions are."""

    def pin_memory(self) -> "Stage1Batch":
        """The batch where a GPU can fetch it while the host goes on."""
        return Stage1Batch(*(value.pin_memory() for value in vars(self).values()))

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

    def batch(
        self,
        tokens: Float[Tensor, "B P C"],
        captions: Sequence[str],
        picture: Int[Tensor, " B"],
        caption: Int[Tensor, " B"],
    ) -> Stage1Batch:
        """Pairs as the objectives need them, on the CPU.

        Args:
            tokens: of the pictures, as cached.
            captions: texts.
            picture, caption: keys, equal where pictures and captions are.
        """
        ids, present = self.tokenizer.encode(captions, self.config.max_text_tokens)
        written = to_write(ids, present, self.tokenizer.dec)
        return Stage1Batch(tokens, Texts.packed(ids, present), *written, picture, caption)

    def image_keys(self, tokens: Float[Tensor, "B P C"]) -> ImageKeys:
        """What cross-attention sees of the pictures, once for all its uses."""
        return self.qformer.image_keys(tokens, self.ln_vision)

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
        queries, first_words, written = self.qformer.see_read_and_write(
            image_keys, batch.texts, batch.to_write if with_itg else None
        )
        smoothing = objectives.label_smoothing
        sims, same = self._similarities(batch, queries, first_words, objectives.gather_gradient)
        first = rank() * len(batch.picture)
        directions = [
            contrastive_loss(sim, same, first=first, label_smoothing=smoothing) for sim in sims
        ]
        itc, itc_unsmoothed = (sum(parts) / 2 for parts in zip(*directions, strict=True))
        losses = {"itc": itc, "itc_unsmoothed": itc_unsmoothed}
        loss = itc
        if itm_hardness is not None:
            mine = uniform[:, first : first + len(batch.picture)].to(same.device, non_blocking=True)
            sim_i2t, sim_t2i = (sim.detach() for sim in sims)
            draws = [
                draw_negatives(sim, same, hardness=itm_hardness, uniform=u)
                for sim, u in zip((sim_t2i, sim_i2t), mine, strict=True)
            ]
            matched = self.match(batch, image_keys, *draws)
            total, right, count = match_loss(*(part.flatten(0, 1) for part in matched))
            losses["itm"] = mean_over_ranks(total, count)
            losses["itm_accuracy"] = mean_over_ranks(right.float(), count)
            loss = loss + losses["itm"]
        else:
            loss = loss + _untouched(self.itm_head)
        # The head comes last: its gradient of all words is there first, and the few rows of the
        # texts are added to it.
        if written is not None:
            scores = self.qformer.scores(written)
            total, plain = caption_loss(scores, batch.targets, label_smoothing=smoothing)
            count = torch.full((), len(batch.targets), device=total.device)
            losses["itg"] = mean_over_ranks(total, count)
            losses["itg_unsmoothed"] = mean_over_ranks(plain, count)
            loss = loss + losses["itg"]
        else:
            loss = loss + _untouched(self.qformer.head, self.qformer.embeddings.words)
        return {"loss": loss} | {name: value.detach() for name, value in losses.items()}

    def _similarities(
        self,
        batch: Stage1Batch,
        queries: Float[Tensor, "B Q D"],
        first_words: Float[Tensor, "B D"],
        gather_gradient: bool,
    ) -> tuple[tuple[Float[Tensor, "B G"], Float[Tensor, "B G"]], Bool[Tensor, "B G"]]:
        """Over the temperature, of this rank's pictures to all texts and of its texts to all
        pictures; and which pairs are no negatives of each other."""
        image = F.normalize(self.vision_proj(queries), dim=-1)
        words = F.normalize(self.text_proj(first_words), dim=-1)
        all_image, all_words = (gathered(x, gradient=gather_gradient) for x in (image, words))
        same = same_pairs(
            batch.picture,
            batch.caption,
            all_picture=gathered(batch.picture, gradient=False),
            all_caption=gathered(batch.caption, gradient=False),
        )
        sims = similarity(image, all_words), similarity(all_image, words).T
        return (sims[0] / self.temperature, sims[1] / self.temperature), same

    def match(
        self, batch: Stage1Batch, image_keys: ImageKeys, pictures: Draw, texts: Draw
    ) -> tuple[Float[Tensor, "B 3 2"], Int[Tensor, "B 3"], Bool[Tensor, "B 3"]]:
        """ITM over each pair, its picture with a drawn text, and its text with a drawn picture.

        Args:
            batch: of this rank.
            image_keys: of its pictures.
            pictures, texts: for each pair a negative among those of all ranks, and whether it has
                one (`draw_negatives`).

        Returns:
            Scores, labels (1 is matched), and which count.
        """
        (drawn_pictures, has_picture), (drawn_texts, has_text) = pictures, texts
        if num_ranks() == 1:
            drawn = Seen(image_keys, picked=drawn_pictures)
        else:
            drawn = Seen(self.image_keys(gathered(batch.tokens, gradient=False)[drawn_pictures]))
        # Ranks have other longest captions, and exchange them at one width.
        own, width = batch.texts, self.config.max_text_tokens
        whole = own if num_ranks() == 1 else own.widened(width)
        ids, present = (
            gathered(x, gradient=False)[drawn_texts] for x in (whole.ids, whole.present)
        )
        pair = torch.arange(len(own.ids), device=own.ids.device)
        texts_of_all = joined(
            [
                (own, 2 * pair),
                (Texts.packed(ids, present), 2 * pair + 1),
                (own, 2 * len(pair) + pair),
            ]
        )
        scores = self.match_logits([Seen(image_keys, times=2), drawn], texts_of_all)
        of_pictures, of_drawn = scores.split([2 * len(own.ids), len(own.ids)])
        logits = torch.cat([of_pictures.unflatten(0, (-1, 2)), of_drawn[:, None]], dim=1)
        labels = torch.zeros(logits.shape[:2], dtype=torch.long, device=logits.device)
        labels[:, 0] = 1
        return logits, labels, torch.stack([has_picture & has_text, has_text, has_picture], dim=1)

    def match_logits(self, images: Sequence[Seen], texts: Texts) -> Float[Tensor, "N 2"]:
        """Scores of unmatched and matched: the ITM head on each query output, averaged.

        Args:
            images, texts: as `QFormer.see_and_read` has them.
        """
        return self.itm_head(self.qformer.see_and_read(images, texts)).mean(dim=1)

    @torch.inference_mode()
    def embed_pictures(self, tokens: Float[Tensor, "B P C"]) -> Float[Tensor, "B Q E"]:
        """Contrastive embeddings of the query outputs, L2-normalised."""
        return self.embed_seen(self.image_keys(tokens))

    @torch.inference_mode()
    def embed_seen(self, image_keys: ImageKeys) -> Float[Tensor, "B Q E"]:
        """The same, of pictures whose keys and values are there."""
        outputs, _ = self.qformer.see(image_keys)
        return F.normalize(self.vision_proj(outputs), dim=-1)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "B E"]:
        """Contrastive embeddings of captions, L2-normalised."""
        packed = Texts.packed(*self.tokenizer.encode(texts, self.config.max_text_tokens))
        return self.embed_words(packed.to(self.temperature.device))

    @torch.inference_mode()
    def embed_words(self, texts: Texts) -> Float[Tensor, "B E"]:
        """The same, of captions as token ids."""
        outputs = self.qformer.read(texts).index_select(0, texts.first)
        return F.normalize(self.text_proj(outputs), dim=-1)


def _untouched(*modules: nn.Module | None) -> Tensor:
    """Zero, with a gradient of zero for each weight: ranks average the gradients of all."""
    weights = [weight for its in modules if its is not None for weight in its.parameters()]
    return 0 * torch.stack([weight.sum() for weight in weights]).sum()
