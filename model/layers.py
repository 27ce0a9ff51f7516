"""What a Q-Former is built of: BERT's attention, feed-forward net and language-model head.

Rows lie one after another without padding (`model.packing`); attention alone sees the padded view.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from model.packing import View
from model.tied_words import TiedWords

INIT_STD = 0.02
"""Standard deviation of what starts from scratch in a Q-Former 768 wide, as in BERT."""


def init_std(width: int) -> float:
    """That of any other width, so that a layer has as much to say as one of 768."""
    return INIT_STD * (768 / width) ** 0.5


def initialise(module: nn.Module, std: float) -> None:
    """Weights of a linear map or an embedding from a normal distribution; its bias is zero."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


KeysValues = tuple[Float[Tensor, "_ _ D"], Float[Tensor, "_ _ D"]]
"""Keys and values of each position of some sequences."""


class LookedAt(NamedTuple):
    """Pictures at which rows look that lie side by side."""

    keys_values: KeysValues
    num_rows: int
    """How many look at each."""
    picked: Int[Tensor, " N"] | None
    """Which of the pictures; None for each of them, in order."""


class Attention(nn.Module):
    """Multi-head attention with its output, residual and norm, as in BERT.

    Args:
        width: D
        source_width: of what is attended to.
        num_heads: H
        dropout: share of weights and outputs set to zero in training.
        eps: of the norm.
    """

    def __init__(
        self, width: int, source_width: int, num_heads: int, dropout: float, eps: float
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout_rate = dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(source_width, width)
        self.value = nn.Linear(source_width, width)
        self.output = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width, eps=eps)

    def look_at_each_other(
        self,
        rows: Float[Tensor, "R D"],
        view: View,
        past: KeysValues | None = None,
        wanted: Int[Tensor, " W"] | None = None,
    ) -> tuple[Float[Tensor, "W D"], KeysValues]:
        """Self-attention, as the view's mask allows.

        Args:
            rows: of all sequences.
            view: of the rows.
            past: keys and values that stand before those of the rows.
            wanted: rows whose outputs are wanted; None for all.

        Returns:
            Their outputs, and the keys and values of all rows, past ones included.
        """
        keys, values = (view.spread(its(rows)) for its in (self.key, self.value))
        if wanted is not None:
            rows, view = rows.index_select(0, wanted), view.only(wanted)
        if past is not None:
            keys, values = torch.cat([past[0], keys], dim=1), torch.cat([past[1], values], dim=1)
        attended = self._attend(view.spread(self.query(rows)), (keys, values), view.mask)
        return self._after(rows, view.collect(attended)), (keys, values)

    def look(
        self, rows: Float[Tensor, "R D"], pictures: Sequence[LookedAt]
    ) -> Float[Tensor, "R D"]:
        """Cross-attention to pictures.

        Args:
            rows: of the queries.
            pictures: whose rows follow each other.
        """
        queries, attended, begin = self.query(rows), [], 0
        for (keys, values), num_rows, picked in pictures:
            if picked is not None:
                keys, values = keys.index_select(0, picked), values.index_select(0, picked)
            end = begin + len(keys) * num_rows
            part = queries[begin:end].unflatten(0, (-1, num_rows))
            attended.append(self._attend(part, (keys, values)).flatten(0, 1))
            begin = end
        return self._after(rows, torch.cat(attended))

    def keys_values_of_norm(self, normed: Float[Tensor, "N P C"], norm: nn.LayerNorm) -> KeysValues:
        """Keys and values of what a norm gives, its scale and shift folded into the weights.

        So what was normed needs no gradient, which would cost as much as the map itself.

        Args:
            normed: without scale and shift.
            norm: whose scale and shift are meant.
        """
        keys, values = (
            F.linear(normed, its.weight * norm.weight, its(norm.bias))
            for its in (self.key, self.value)
        )
        return keys, values

    def _attend(
        self,
        queries: Float[Tensor, "N T D"],
        keys_values: KeysValues,
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "N T D"]:
        keys, values = keys_values
        attended = F.scaled_dot_product_attention(
            self._heads(queries),
            self._heads(keys),
            self._heads(values),
            attn_mask=mask,
            dropout_p=self.dropout_rate if self.training else 0.0,
        )
        return attended.transpose(1, 2).flatten(2)

    def _heads(self, rows: Float[Tensor, "N S D"]) -> Float[Tensor, "N H S K"]:
        return rows.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _after(
        self, rows: Float[Tensor, "R D"], attended: Float[Tensor, "R D"]
    ) -> Float[Tensor, "R D"]:
        return self.norm(rows + self.dropout(self.output(attended)))


class FeedForward(nn.Module):
    """Two linear maps with GELU between them, residual and norm, as in BERT."""

    def __init__(self, width: int, inner_width: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.up = nn.Linear(width, inner_width)
        self.down = nn.Linear(inner_width, width)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, rows: Float[Tensor, "R D"]) -> Float[Tensor, "R D"]:
        return self.norm(rows + self.dropout(self.down(F.gelu(self.up(rows)))))


class LanguageHead(nn.Module):
    """BERT's language-model head; its last map is tied to the word embeddings."""

    def __init__(self, width: int, vocab_size: int, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, rows: Float[Tensor, "R D"], words: TiedWords) -> Float[Tensor, "R V"]:
        return words.scores(self.norm(F.gelu(self.dense(rows))), self.bias)


class Embeddings(nn.Module):
    """Queries as they are, text as words and positions; norm and dropout over both."""

    def __init__(
        self,
        width: int,
        dropout: float,
        eps: float,
        *,
        vocab_size: int,
        max_positions: int,
        with_text: bool,
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(vocab_size, width) if with_text else None
        self.positions = nn.Embedding(max_positions, width) if with_text else None
        self.norm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        queries: Float[Tensor, "R D"] | None = None,
        tokens: Int[Tensor, " T"] | None = None,
        positions: Int[Tensor, " T"] | None = None,
    ) -> Float[Tensor, "S D"]:
        """Rows of queries, then of text tokens with their positions."""
        parts = [] if queries is None else [queries]
        if tokens is not None:
            if self.words is None or self.positions is None:
                raise TypeError("a Q-Former without text cannot read")
            # A dense gradient would be filled with zeros for all words anew at every use. On the
            # meta device, where operations are counted, PyTorch has no sparse ones.
            words = F.embedding(tokens, self.words.weight, sparse=not tokens.is_meta)
            parts.append(words + self.positions(positions))
        return self.dropout(self.norm(torch.cat(parts)))
