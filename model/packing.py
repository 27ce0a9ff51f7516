"""Texts without their padding, and the padded view in which attention happens.

Whatever is done position by position (projections, feed-forward nets, norms) is done on rows that
lie one after another, none of them padding. Only attention needs sequences side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Texts:
    """N texts as token ids, and where in them the tokens are."""

    ids: Int[Tensor, "N T"]
    present: Bool[Tensor, "N T"]
    """False on padding."""
    places: Int[Tensor, " R"]
    """Of the tokens in the flattened ids, ascending."""

    @staticmethod
    def packed(ids: Int[Tensor, "N T"], present: Bool[Tensor, "N T"]) -> "Texts":
        """Find the tokens, where counting them costs nothing.

        On a GPU the host would have to wait for their number; there padding is kept, which changes
        nothing but time.
        """
        if ids.device.type == "cpu":
            return Texts(ids, present, present.flatten().nonzero()[:, 0])
        return Texts(ids, present, torch.arange(ids.numel(), device=ids.device))

    @property
    def width(self) -> int:
        """T"""
        return self.ids.shape[1]

    @property
    def tokens(self) -> Int[Tensor, " R"]:
        return self.ids.flatten()[self.places]

    @property
    def text(self) -> Int[Tensor, " R"]:
        """Which of the N each token belongs to."""
        return self.places // self.width

    @property
    def position(self) -> Int[Tensor, " R"]:
        """Of each token in its text, from 0."""
        return self.places % self.width

    @property
    def first(self) -> Int[Tensor, " N"]:
        """Which of the R is each text's first token."""
        starts = torch.arange(len(self.ids), device=self.places.device) * self.width
        return torch.searchsorted(self.places, starts)

    def widened(self, width: int) -> "Texts":
        """The same texts with more padding."""
        more = (0, width - self.width)
        places = self.text * width + self.position
        return Texts(F.pad(self.ids, more), F.pad(self.present, more), places)

    def to(self, device: Any, *, non_blocking: bool = False) -> "Texts":
        """The texts on another device."""
        return Texts(*(x.to(device, non_blocking=non_blocking) for x in vars(self).values()))


def joined(parts: Sequence[Texts]) -> Texts:
    """One after another, as wide as the widest."""
    width = max(part.width for part in parts)
    parts = [part.widened(width) for part in parts]
    before = accumulate((part.ids.numel() for part in parts), initial=0)
    return Texts(
        torch.cat([part.ids for part in parts]),
        torch.cat([part.present for part in parts]),
        torch.cat([start + part.places for start, part in zip(before, parts, strict=False)]),
    )


@dataclass(frozen=True)
class View:
    """Where rows lie in the padded view [N, S], in which sequences attend to themselves."""

    num_sequences: int
    """N"""
    width: int
    """S"""
    places: Int[Tensor, " R"] | None = None
    """Of the rows in the flattened view; None where they fill it in order."""
    mask: Bool[Tensor, "..."] | None = None
    """Which position each may see, broadcast to [N, heads, S, S]; None for all."""

    @property
    def num_rows(self) -> int:
        """R"""
        return self.num_sequences * self.width if self.places is None else len(self.places)

    def spread(self, rows: Float[Tensor, "R W"]) -> Float[Tensor, "N S W"]:
        """Rows at their places, zeros where there are none."""
        if self.places is not None:
            rows = _put(rows, self.places, self.num_sequences * self.width)
        return rows.unflatten(0, (self.num_sequences, self.width))

    def collect(self, spread: Float[Tensor, "N S W"]) -> Float[Tensor, "R W"]:
        """The rows out of the padded view."""
        flat = spread.flatten(0, 1)
        return flat if self.places is None else _Take.apply(flat, self.places)

    def only(self, wanted: Int[Tensor, " R"]) -> "View":
        """The view of some of the rows."""
        if self.places is None:
            return replace(self, places=wanted)
        return replace(self, places=self.places[wanted])


def _put(rows: Float[Tensor, "R W"], places: Int[Tensor, " R"], num: int) -> Float[Tensor, "M W"]:
    return rows.new_zeros(num, rows.shape[1]).index_copy(0, places, rows)


class _Take(torch.autograd.Function):
    """Rows by their places, each taken once: PyTorch's own gradient would add up, which is slow."""

    @staticmethod
    def forward(context: Any, flat: Tensor, places: Tensor) -> Tensor:
        context.save_for_backward(places)
        context.num = len(flat)
        return flat.index_select(0, places)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (places,) = context.saved_tensors
        return _put(gradient, places, context.num), None


def image_view(num_pictures: int, num_blocks: int, num_queries: int, device: Any) -> View:
    """The queries that look at each picture, side by side, so that its keys lie there once.

    Args:
        num_pictures: B
        num_blocks: of sequences, each with one for every picture.
        num_queries: Q, of a sequence; the rows are [block, picture, query].
    """
    if num_blocks == 1:
        return View(num_pictures, num_queries)
    block, picture, query = (
        torch.arange(n, device=device) for n in (num_blocks, num_pictures, num_queries)
    )
    places = (picture[:, None] * num_blocks + block[:, None, None]) * num_queries + query
    return View(num_pictures, num_blocks * num_queries, places.flatten())


def query_places(
    num_sequences: int, num_queries: int, width: int, device: Any
) -> Int[Tensor, " R"]:
    """Places of queries that stand at the beginning of each sequence."""
    starts = torch.arange(num_sequences, device=device) * width
    return (starts[:, None] + torch.arange(num_queries, device=device)).flatten()


def text_places(texts: Texts, width: int, after: int) -> Int[Tensor, " R"]:
    """Places of tokens whose texts stand `after` so many others in each sequence."""
    return texts.text * width + after + texts.position
