"""How well texts fit their pictures, as stage 1 sees it: what CapFilt chooses captions by."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from model.matching import PAIRS_AT_ONCE, pair_cosines, pair_logits, pair_up
from model.stage1 import Stage1


class Fit(NamedTuple):
    """How well a text fits a picture."""

    itc: float
    """Cosine of the text and its closest query output."""
    itm: float
    """Probability that they belong together."""


class Stage1Judge:
    """ITC's similarity and ITM's probability of pictures and their texts.

    Args:
        stage1: in eval mode.
        pairs_at_once: pictures with a text that are looked at together, which bounds the memory.
    """

    def __init__(self, stage1: Stage1, pairs_at_once: int = PAIRS_AT_ONCE) -> None:
        self._stage1 = stage1
        self._pairs_at_once = pairs_at_once

    @torch.inference_mode()
    def scores(
        self, tokens: Float[Tensor, "B P C"], texts: Sequence[Sequence[str]]
    ) -> list[list[Fit]]:
        """How well each text fits its picture; none depends on the others but in its last bits.

        Args:
            tokens: image tokens as cached; their keys and values are in memory at once.
            texts: of each picture, any number; those that are too long are cut.

        Raises:
            ValueError: there are not as many lists of texts as pictures.
        """
        if len(texts) != len(tokens):
            raise ValueError(f"texts of {len(texts)} pictures for {len(tokens)} pictures")
        if not any(texts):
            return [[] for _ in texts]
        stage1 = self._stage1
        pairs = pair_up(stage1, texts)
        image_keys = stage1.image_keys(tokens.to(stage1.temperature.device))
        image = stage1.embed_seen(image_keys)
        found = torch.cat(
            [
                torch.stack(
                    [
                        pair_cosines(stage1, image, part),
                        pair_logits(stage1, image_keys, part).softmax(dim=1)[:, 1],
                    ],
                    dim=1,
                )
                for part in pairs.parts(self._pairs_at_once)
            ]
        )
        fits = iter(found[pairs.place].tolist())
        return [[Fit(*next(fits)) for _ in its] for its in texts]
