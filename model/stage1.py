"""Stage 1: the Q-Former learns to see what a caption says (BLIP-2, section 3.2).

One step: in one pass the queries look at the pictures, text is read (ITC compares the two) and is
written after what the queries kept (ITG); in a second one pairs and drawn non-pairs look at each
other (ITM). Keys and values of a picture are computed once for both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from model.itc import contrastive_loss, same_pairs, similarity
from model.itg import caption_loss, to_write
from model.itm import draw_negatives, match_loss
from model.layers import init_std, initialise
from model.objectives import ITC, ITG, ITM, LOSSES, ObjectivesConfig
from model.packing import Repeated, Texts, joined
from model.qformer import ImageKeys, Layer, QFormer, QFormerConfig, Seen
from model.ranks import gathered, mean_over_ranks, num_ranks, rank
from model.tied_words import TiedWords
from model.tokenizer import CaptionTokenizer

TEMPERATURE_RANGE = (0.001, 0.5)
"""The learned temperature is kept between these; ALBEF, BLIP's origin, does likewise."""

Similarities = tuple[Float[Tensor, "B G"], Float[Tensor, "B G"]]
"""Over the temperature: of a rank's pictures to all texts, of its texts to all pictures."""

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
            itm_hardness: of ITM's negatives, 0 where there is no ITC; None leaves ITM out.
            uniform: numbers in [0, 1) that draw the negative picture and the negative caption of
                each pair of all ranks; alike on all ranks.
            with_itg: whether ITG has joined.

        Returns:
            `loss`, the sum of those of the objectives that have joined, and beside it, without
            gradient and as far as they belong to these: `itc`, `itm`, `itg`, `itc_unsmoothed`,
            `itg_unsmoothed`, in nats, and `itm_accuracy`.

        Raises:
            ValueError: hard negatives are asked for without ITC.
        """
        these = objectives.joined(itm=itm_hardness is not None, itg=with_itg)
        smoothing = objectives.label_smoothing
        image_keys = self.qformer.image_keys(
            batch.tokens, self.ln_vision, last=these != frozenset({ITG})
        )
        words = self.qformer.tied_words() if ITG in these else None
        found: dict[str, Tensor] = {}
        sims, written = None, None
        if ITC in these:
            queries, first_words, written = self.qformer.see_read_and_write(
                image_keys, batch.texts, batch.to_write if ITG in these else None
            )
            sims = self._similarities(queries, first_words, objectives.gather_gradient)
        elif ITG in these:
            written = self.qformer.see_and_write(image_keys, batch.to_write)
        if ITC in these or ITM in these:
            same = same_pairs(
                batch.picture,
                batch.caption,
                all_picture=gathered(batch.picture, gradient=False),
                all_caption=gathered(batch.caption, gradient=False),
            )
            if sims is not None:
                found |= _itc(sims, same, smoothing)
            if ITM in these and itm_hardness is not None:
                found |= self._itm(batch, image_keys, sims, same, itm_hardness, uniform)
        if written is not None and words is not None:
            found |= self._itg(written, words, batch.targets, smoothing)
        first, *others = (found[name] for name in LOSSES if name in found)
        loss = sum(others, start=first)
        if still := self._still(these):
            loss = loss + _untouched(still)
        return {"loss": loss} | {name: value.detach() for name, value in found.items()}

    def freeze_unread(self, losses: frozenset[str]) -> None:
        """Have no gradient, and so no update and no decay, for weights that none of these losses
        reads: what a training leaves out for good stays as it is."""
        for weight in self._unread(losses):
            weight.requires_grad_(False)

    def _unread(self, losses: frozenset[str]) -> list[nn.Parameter]:
        """Weights that none of these losses reads."""
        last = cast(Layer, self.qformer.layers[-1])
        parts: list[nn.Module | None] = []
        if ITC not in losses:
            parts += [self.vision_proj, self.text_proj]
        if ITM not in losses:
            parts.append(self.itm_head)
        if ITG not in losses:
            parts.append(self.qformer.head)
        if losses == {ITM}:  # it reads the queries' outputs alone
            parts.append(last.text_feed_forward)
        if losses == {ITG}:  # and it the text's
            parts += [last.look, last.query_feed_forward]
            parts += [self.ln_vision] if len(self.qformer.layers) == 1 else []
        weights = [weight for part in parts if part is not None for weight in part.parameters()]
        return weights if ITC in losses else [self.temperature, *weights]

    def _still(self, losses: frozenset[str]) -> list[nn.Parameter]:
        """Weights that train, but not by these losses yet; and without ITG all words, of which the
        texts that are read move a few rows."""
        still = [weight for weight in self._unread(losses) if weight.requires_grad]
        words = self.qformer.embeddings.words
        return still if ITG in losses or words is None else [*still, *words.parameters()]

    def _similarities(
        self,
        queries: Float[Tensor, "B Q D"],
        first_words: Float[Tensor, "B D"],
        gather_gradient: bool,
    ) -> Similarities:
        image = F.normalize(self.vision_proj(queries), dim=-1)
        words = F.normalize(self.text_proj(first_words), dim=-1)
        all_image, all_words = (gathered(x, gradient=gather_gradient) for x in (image, words))
        sims = similarity(image, all_words), similarity(all_image, words).T
        return sims[0] / self.temperature, sims[1] / self.temperature

    def _itm(
        self,
        batch: Stage1Batch,
        image_keys: ImageKeys,
        sims: Similarities | None,
        same: Bool[Tensor, "B G"],
        hardness: float,
        uniform: Float64[Tensor, "2 G"],
    ) -> dict[str, Tensor]:
        """ITM with its accuracy, against negatives that are as hard by these similarities."""
        if sims is None:
            if hardness:
                raise ValueError(f"itm_hardness: {hardness}, but no ITC finds hard negatives")
            none = torch.zeros(same.shape, device=same.device)
            sims = none, none
        first = rank() * len(same)
        mine = uniform[:, first : first + len(same)].to(same.device, non_blocking=True)
        sim_i2t, sim_t2i = (sim.detach() for sim in sims)
        draws = [
            draw_negatives(sim, same, hardness=hardness, uniform=u)
            for sim, u in zip((sim_t2i, sim_i2t), mine, strict=True)
        ]
        matched = self.match(batch, image_keys, *draws)
        total, right, count = match_loss(*(part.flatten(0, 1) for part in matched))
        return {
            ITM: mean_over_ranks(total, count),
            "itm_accuracy": mean_over_ranks(right.float(), count),
        }

    def _itg(
        self,
        written: Float[Tensor, "W D"],
        words: TiedWords,
        targets: Int[Tensor, " W"],
        smoothing: float,
    ) -> dict[str, Tensor]:
        scores = self.qformer.scores(written, words)
        total, plain = caption_loss(scores, targets, label_smoothing=smoothing)
        count = torch.full((), len(targets), device=total.device)
        return {ITG: mean_over_ranks(total, count), "itg_unsmoothed": mean_over_ranks(plain, count)}

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
        other = Texts.packed(
            *(gathered(x, gradient=False)[drawn_texts] for x in (whole.ids, whole.present))
        )
        pair = torch.arange(len(own.ids), device=own.ids.device)
        texts_of_all = joined([(own, 2 * pair), (other, 2 * pair + 1), (own, 2 * len(pair) + pair)])
        distinct, number = own, drawn_texts
        if num_ranks() > 1:
            number = len(pair) + pair
            distinct = joined([(own, pair), (other, number)])
        which = torch.cat([torch.stack([pair, number], dim=1).flatten(), pair])
        scores = self.match_logits(
            [Seen(image_keys, times=2), drawn], texts_of_all, Repeated(distinct, which)
        )
        of_pictures, of_drawn = scores.split([2 * len(own.ids), len(own.ids)])
        logits = torch.cat([of_pictures.unflatten(0, (-1, 2)), of_drawn[:, None]], dim=1)
        labels = torch.zeros(logits.shape[:2], dtype=torch.long, device=logits.device)
        labels[:, 0] = 1
        return logits, labels, torch.stack([has_picture & has_text, has_text, has_picture], dim=1)

    def match_logits(
        self, images: Sequence[Seen], texts: Texts, repeated: Repeated | None = None
    ) -> Float[Tensor, "N 2"]:
        """Scores of unmatched and matched: the ITM head on each query output, averaged.

        Args:
            images, texts, repeated: as `QFormer.see_and_read` has them.
        """
        return self.itm_head(self.qformer.see_and_read(images, texts, repeated)).mean(dim=1)

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


def _itc(sims: Similarities, same: Bool[Tensor, "B G"], smoothing: float) -> dict[str, Tensor]:
    first = rank() * len(same)
    directions = [
        contrastive_loss(sim, same, first=first, label_smoothing=smoothing) for sim in sims
    ]
    (of_pictures, its_plain), (of_texts, their_plain) = directions
    return {ITC: (of_pictures + of_texts) / 2, "itc_unsmoothed": (its_plain + their_plain) / 2}


def _untouched(weights: Sequence[Tensor]) -> Tensor:
    """Zero, with a gradient of zero for each weight: ranks average the gradients of all."""
    return 0 * torch.stack([weight.sum() for weight in weights]).sum()
