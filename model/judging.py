"""How well texts fit their pictures, as stage 1 sees it: what CapFilt chooses captions by.

A picture is looked at once for all its texts: its keys and values for cross-attention stay, and its
query outputs meet the texts in ITC. Then each text and the queries see each other in ITM. Texts of
a picture that are the same to the tokenizer are judged once.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from model.itc import similarity
from model.packing import Texts
from model.precision import exact
from model.qformer import ImageKeys, Seen
from model.stage1 import Stage1

_PAIRS_AT_ONCE = 256
"""Of BERT-base size so many take some 0.3 GB in a feed-forward net."""


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

    def __init__(self, stage1: Stage1, pairs_at_once: int = _PAIRS_AT_ONCE) -> None:
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
        all_texts = [text for its in texts for text in its]
        if not all_texts:
            return [[] for _ in texts]
        stage1, device = self._stage1, self._stage1.temperature.device
        ids, which = stage1.tokenizer.encode(all_texts, stage1.config.max_text_tokens)[0].unique(
            dim=0, return_inverse=True
        )
        present = ids != stage1.tokenizer.pad
        owner = torch.arange(len(texts)).repeat_interleave(torch.tensor([len(t) for t in texts]))
        pairs, place = torch.stack([owner, which], dim=1).unique(dim=0, return_inverse=True)
        image_keys = stage1.image_keys(tokens.to(device))
        image = stage1.embed_seen(image_keys)
        found = []
        for owner, which in (part.T for part in pairs.split(self._pairs_at_once)):
            its_ids, its_present = ids[which], present[which]
            width = int(its_present.sum(dim=1).max())
            its_ids, its_present = its_ids[:, :width], its_present[:, :width]
            found.append(
                torch.stack(
                    [
                        self._cosines(image, owner, its_ids, its_present),
                        self._probabilities(image_keys, owner, its_ids, its_present),
                    ],
                    dim=1,
                )
            )
        fits = iter(torch.cat(found)[place].tolist())
        return [[Fit(*next(fits)) for _ in its] for its in texts]

    def _cosines(
        self,
        image: Float[Tensor, "B Q E"],
        owner: Int[Tensor, " N"],
        ids: Int[Tensor, "N T"],
        present: Bool[Tensor, "N T"],
    ) -> Float[Tensor, " N"]:
        """ITC of pairs, on the CPU; `owner` is the picture of each, ascending."""
        words = self._stage1.embed_words(Texts.packed(ids, present).to(image.device))
        pictures, its = owner.unique_consecutive(return_inverse=True)
        cosines = similarity(image[pictures.to(image.device)], words).cpu()
        return cosines[its, torch.arange(len(its))]

    def _probabilities(
        self,
        image_keys: ImageKeys,
        owner: Int[Tensor, " N"],
        ids: Int[Tensor, "N T"],
        present: Bool[Tensor, "N T"],
    ) -> Float[Tensor, " N"]:
        """ITM of the same pairs, on the CPU.

        Pictures with equally many texts stand together, so that the rows of all of a picture's
        texts look at it side by side, and its keys and values are not copied for each.
        """
        device = image_keys[0][0].device
        pictures, counts = owner.unique_consecutive(return_counts=True)
        first = counts.cumsum(0) - counts
        images, order = [], []
        for count in counts.unique().tolist():
            alike = counts == count
            images.append(Seen(image_keys, times=count, picked=pictures[alike].to(device)))
            order.append((first[alike][:, None] + torch.arange(count)).flatten())
        ordered = torch.cat(order)
        texts = Texts.packed(ids[ordered], present[ordered]).to(device)
        logits = exact(self._stage1.match_logits(images, texts)).cpu()
        return logits.softmax(dim=1)[ordered.argsort(), 1]
