"""Texts without their padding, and the padded view in which attention happens.

Whatever is done position by position (projections, feed-forward nets, norms) is done on rows that
lie one after another, none of them padding. Only attention needs sequences side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
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

    def pin_memory(self) -> "Texts":
        """The texts where a GPU can fetch them while the host goes on."""
        return Texts(*(x.pin_memory() for x in vars(self).values()))

    def to(self, device: Any, *, non_blocking: bool = False) -> "Texts":
        """The texts on another device."""
        return Texts(*(x.to(device, non_blocking=non_blocking) for x in vars(self).values()))


def joined(parts: Sequence[tuple[Texts, Int[Tensor, " M"]]]) -> Texts:
    """Several lists of texts as one, as wide as the widest.

    Args:
        parts: each list, and the number that each of its texts gets in the whole.
    """
    width = max(texts.width for texts, _ in parts)
    wide = [(texts.widened(width), numbers) for texts, numbers in parts]
    order = torch.cat([numbers for _, numbers in wide]).argsort()
    places = [numbers[texts.text] * width + texts.position for texts, numbers in wide]
    return Texts(
        torch.cat([texts.ids for texts, _ in wide])[order],
        torch.cat([texts.present for texts, _ in wide])[order],
        torch.cat(places).sort().values,
    )


@dataclass(frozen=True)
class Repeated:
    """Texts of which some are equal."""

    distinct: Texts
    which: Int[Tensor, " N"]
    """Of the distinct ones, each text is."""

    def rows(self, texts: Texts) -> Int[Tensor, " R"]:
        """Which row of the distinct texts each row of these is; of padding, any.

        Args:
            texts: all of them.
        """
        distinct = self.distinct
        row_of_each = _row_of_each(distinct.places, distinct.ids.numel())
        place = self.which[texts.text] * distinct.width + texts.position
        # Where nothing says how long a text is, it may be wider than the distinct ones.
        return row_of_each[place.clamp(max=len(row_of_each) - 1)]


class View:
    """Where rows lie in the padded view [N, S], in which sequences attend to themselves.

    Args:
        num_sequences: N
        width: S
        places: of the rows in the flattened view; None where they fill it in order.
        mask: which position each may see, broadcast to [N, heads, S, S]; None for all. Nobody
            may see padding.
    """

    def __init__(
        self,
        num_sequences: int,
        width: int,
        places: Int[Tensor, " R"] | None = None,
        mask: Bool[Tensor, "..."] | None = None,
    ) -> None:
        self.num_sequences = num_sequences
        self.width = width
        self.places = places
        self.mask = mask
        self._rows = None if places is None else _row_of_each(places, num_sequences * width)

    def spread(self, rows: Float[Tensor, "R W"]) -> Float[Tensor, "N S W"]:
        """Rows at their places; padding holds anything, and has no gradient."""
        if self.places is not None:
            rows = _Spread.apply(rows, self._rows, self.places)
        return rows.unflatten(0, (self.num_sequences, self.width))

    def collect(self, spread: Float[Tensor, "N S W"]) -> Float[Tensor, "R W"]:
        """The rows out of the padded view."""
        flat = spread.flatten(0, 1)
        return flat if self.places is None else _Collect.apply(flat, self.places)

    def only(self, wanted: Int[Tensor, " R"]) -> "View":
        """The view of some of the rows."""
        places = wanted if self.places is None else self.places[wanted]
        return View(self.num_sequences, self.width, places, self.mask)


def _row_of_each(places: Int[Tensor, " R"], num: int) -> Int[Tensor, " M"]:
    rows = torch.arange(len(places), device=places.device)
    return torch.zeros(num, dtype=torch.long, device=places.device).index_copy(0, places, rows)


# PyTorch's own gradients of picking rows add up, which is slow; here each row has one place.


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, rows: Tensor, row_of_each: Tensor, places: Tensor) -> Tensor:
        context.save_for_backward(places)
        return rows.index_select(0, row_of_each)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (places,) = context.saved_tensors
        return gradient.index_select(0, places), None, None


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, flat: Tensor, places: Tensor) -> Tensor:
        context.save_for_backward(places)
        context.num = len(flat)
        return flat.index_select(0, places)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (places,) = context.saved_tensors
        everywhere = gradient.new_zeros(context.num, gradient.shape[1])
        return everywhere.index_copy_(0, places, gradient), None


def query_places(
    num_sequences: int, num_queries: int, width: int, device: Any
) -> Int[Tensor, " R"]:
    """Places of queries that stand at the beginning of each sequence."""
    starts = torch.arange(num_sequences, device=device) * width
    return (starts[:, None] + torch.arange(num_queries, device=device)).flatten()


def text_places(texts: Texts, width: int, after: int) -> Int[Tensor, " R"]:
    """Places of tokens whose texts stand `after` so many others in each sequence."""
    return texts.text * width + after + texts.position
