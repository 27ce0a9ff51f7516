"""Re-ranking: the few best of a search by ITC, put in order by ITM (BLIP-2, section 4.4).

As LAVIS does, a text and a picture score ITM's logit of "matched" plus their cosine. A picture is
looked at once for all the texts that are to be compared with it, whoever they are candidates of:
group by picture before the call, also where pictures are ranked for a text.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from model.matching import PAIRS_AT_ONCE, Pairs, pair_cosines, pair_logits, scores_of_each
from model.qformer import ImageKeys
from model.stage1 import Stage1


@torch.inference_mode()
def rerank_scores(
    stage1: Stage1,
    tokens: Float[Tensor, "B P C"],
    texts: Sequence[Sequence[str]],
    *,
    pairs_at_once: int = PAIRS_AT_ONCE,
) -> list[np.ndarray]:
    """The match logit plus the cosine of each text with its picture.

    Args:
        stage1: in eval mode.
        tokens: image tokens as cached; their keys and values are in memory at once.
        texts: of each picture, any number; those that are too long are cut. Equal ones score
            the same.
        pairs_at_once: pictures with a text that are looked at together, which bounds the memory.

    Returns:
        Of each picture float64[T], in the order of its texts.

    Raises:
        ValueError: there are not as many lists of texts as pictures.
    """

    def summed(image_keys: ImageKeys) -> Callable[[Pairs], Tensor]:
        image = stage1.embed_seen(image_keys)
        return lambda part: (
            pair_logits(stage1, image_keys, part)[:, 1] + pair_cosines(stage1, image, part)
        )

    return _in_numpy(scores_of_each(stage1, tokens, texts, summed, pairs_at_once))


@torch.inference_mode()
def match_scores(
    stage1: Stage1,
    tokens: Float[Tensor, "B P C"],
    texts: Sequence[Sequence[str]],
    *,
    pairs_at_once: int = PAIRS_AT_ONCE,
) -> list[np.ndarray]:
    """The match logit alone, for whoever has the cosines already; arguments as `rerank_scores`."""

    def logits(image_keys: ImageKeys) -> Callable[[Pairs], Tensor]:
        return lambda part: pair_logits(stage1, image_keys, part)[:, 1]

    return _in_numpy(scores_of_each(stage1, tokens, texts, logits, pairs_at_once))


def _in_numpy(scores: Sequence[Tensor]) -> list[np.ndarray]:
    return [its.double().numpy() for its in scores]
