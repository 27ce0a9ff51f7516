"""How well texts fit their pictures, as stage 1 sees it: what CapFilt chooses captions by."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from model.matching import PAIRS_AT_ONCE, Pairs, pair_cosines, pair_logits, scores_of_each
from model.qformer import ImageKeys
from model.stage1 import Stage1


class Fit(NamedTuple):
    """How well a text fits a picture."""

    itc: float
    """Cosine of the text and its closest query output."""
    itm: float | None = None
    """Probability that they belong together; None of a judge that does not tell it."""


class Stage1Judge:
    """ITC's similarity and ITM's probability of pictures and their texts.

    Args:
        stage1: in eval mode.
        pairs_at_once: pictures with a text that are looked at together, which bounds the memory.
        tells_match: whether to compute ITM, most of the work, too.
    """

    def __init__(
        self, stage1: Stage1, pairs_at_once: int = PAIRS_AT_ONCE, *, tells_match: bool = True
    ) -> None:
        self._stage1 = stage1
        self._pairs_at_once = pairs_at_once
        self._tells_match = tells_match

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
        stage1 = self._stage1

        def both(image_keys: ImageKeys) -> Callable[[Pairs], Tensor]:
            image = stage1.embed_seen(image_keys)

            def fits(part: Pairs) -> Tensor:
                told = [pair_cosines(stage1, image, part)]
                if self._tells_match:
                    told.append(pair_logits(stage1, image_keys, part).softmax(dim=1)[:, 1])
                return torch.stack(told, dim=1)

            return fits

        found = scores_of_each(stage1, tokens, texts, both, self._pairs_at_once)
        return [[Fit(*told) for told in its.tolist()] for its in found]
