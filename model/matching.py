"""Pictures with texts, paired as ITC and ITM see them: what judges and re-ranks captions.

A picture is looked at once for all its texts: its keys and values for cross-attention stay. Texts
of a picture that are the same to the tokenizer are one pair, so that equal texts get equal scores.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from model.itc import similarity
from model.packing import Repeated, Texts
from model.precision import exact
from model.qformer import ImageKeys, Seen
from model.stage1 import Stage1

PAIRS_AT_ONCE = 256
"""Of BERT-base size so many take some 0.3 GB in a feed-forward net."""


@dataclass(frozen=True)
class Pairs:
    """Pictures with a text each, none twice; those of one picture side by side."""

    ids: Int[Tensor, "M T"]
    """The texts, each once."""
    present: Bool[Tensor, "M T"]
    """False on padding."""
    picture: Int[Tensor, " N"]
    """Of each pair, ascending."""
    text: Int[Tensor, " N"]
    """Of each pair, which of the M."""
    place: Int[Tensor, " K"]
    """For each text that was given, of all pictures in order, its pair."""

    def parts(self, at_once: int) -> Iterator["Pairs"]:
        """All pairs, `at_once` of them at a time, with the texts that they need; no `place`."""
        for picture, text in zip(
            self.picture.split(at_once), self.text.split(at_once), strict=True
        ):
            used, number = text.unique(return_inverse=True)
            width = int(self.present[used].sum(dim=1).max())
            yield replace(
                self,
                ids=self.ids[used, :width],
                present=self.present[used, :width],
                picture=picture,
                text=number,
                place=self.place[:0],
            )


def pair_up(stage1: Stage1, texts: Sequence[Sequence[str]]) -> Pairs:
    """Pictures with their texts, on the CPU.

    Args:
        stage1: whose tokenizer reads them.
        texts: of each picture, any number; one at least in all. Those that are too long are cut.
    """
    all_texts = [text for its in texts for text in its]
    encoded, _ = stage1.tokenizer.encode(all_texts, stage1.config.max_text_tokens)
    ids, which = encoded.unique(dim=0, return_inverse=True)
    owner = torch.arange(len(texts)).repeat_interleave(torch.tensor([len(t) for t in texts]))
    pairs, place = torch.stack([owner, which], dim=1).unique(dim=0, return_inverse=True)
    picture, text = pairs.T
    return Pairs(ids, ids != stage1.tokenizer.pad, picture, text, place)


PairScores = Callable[[ImageKeys], Callable[[Pairs], Tensor]]
"""Keys and values of pictures, to the scores [N, ...] of some pairs of them, on the CPU."""


def scores_of_each(
    stage1: Stage1,
    tokens: Float[Tensor, "B P C"],
    texts: Sequence[Sequence[str]],
    pair_scores: PairScores,
    pairs_at_once: int,
) -> list[Tensor]:
    """Scores of each picture's texts, part by part.

    Args:
        stage1: in eval mode.
        tokens: image tokens as cached; their keys and values are in memory at once.
        texts: of each picture, any number; those that are too long are cut.
        pair_scores: what is wanted of pairs.
        pairs_at_once: pictures with a text that are looked at together, which bounds the memory.

    Returns:
        Of each picture [T, ...], in the order of its texts.

    Raises:
        ValueError: there are not as many lists of texts as pictures.
    """
    if len(texts) != len(tokens):
        raise ValueError(f"texts of {len(texts)} pictures for {len(tokens)} pictures")
    if not any(texts):
        return [torch.zeros(0) for _ in texts]
    pairs = pair_up(stage1, texts)
    scores = pair_scores(stage1.image_keys(tokens.to(stage1.temperature.device)))
    found = torch.cat([scores(part) for part in pairs.parts(pairs_at_once)])
    return list(found[pairs.place].split([len(its) for its in texts]))


def pair_cosines(
    stage1: Stage1, image: Float[Tensor, "B Q E"], pairs: Pairs
) -> Float[Tensor, " N"]:
    """ITC of each pair: the cosine of the text and the picture's closest query output; on the CPU.

    Args:
        stage1: in eval mode.
        image: of all pictures, L2-normalised.
        pairs: which of them with which text.
    """
    texts = Texts.packed(pairs.ids, pairs.present).to(image.device)
    pictures, its = pairs.picture.unique_consecutive(return_inverse=True)
    cosines = similarity(image[pictures.to(image.device)], stage1.embed_words(texts)).cpu()
    return cosines[its, pairs.text]


def pair_logits(stage1: Stage1, image_keys: ImageKeys, pairs: Pairs) -> Float[Tensor, "N 2"]:
    """ITM of each pair: scores of unmatched and matched, in float32 at least; on the CPU.

    Pictures with equally many texts stand together, so that the rows of all of a picture's texts
    look at it side by side, and its keys and values are not copied for each.

    Args:
        stage1: in eval mode.
        image_keys: of all pictures.
        pairs: which of them with which text.
    """
    device = image_keys[0][0].device
    pictures, counts = pairs.picture.unique_consecutive(return_counts=True)
    first = counts.cumsum(0) - counts
    images, order = [], []
    for count in counts.unique().tolist():
        alike = counts == count
        images.append(Seen(image_keys, times=count, picked=pictures[alike].to(device)))
        order.append((first[alike][:, None] + torch.arange(count)).flatten())
    ordered = torch.cat(order)
    text = pairs.text[ordered]
    texts = Texts.packed(pairs.ids[text], pairs.present[text]).to(device)
    distinct = Texts.packed(pairs.ids, pairs.present).to(device)
    logits = stage1.match_logits(images, texts, Repeated(distinct, text.to(device)))
    return exact(logits).cpu()[ordered.argsort()]
