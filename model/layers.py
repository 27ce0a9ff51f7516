"""What a Q-Former is built of: BERT's attention, feed-forward net and language-model head.

Rows lie one after another without padding (`model.packing`); attention alone sees the padded view.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor, nn

from model.packing import View

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


def exact(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """In float32 at least: losses of scores in half precision would be rounded."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


KeysValues = tuple[Float[Tensor, "_ H _ K"], Float[Tensor, "_ H _ K"]]
"""Keys and values of H heads of width K = D / H, over S positions."""


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
        if wanted is None:
            queries, *of_rows = self._project(rows, view, self.query, self.key, self.value)
        else:
            of_rows = list(self._project(rows, view, self.key, self.value))
            rows, view = rows.index_select(0, wanted), view.only(wanted)
            queries = self._heads(view.spread(self.query(rows)))
        keys, values = of_rows
        if past is not None:
            keys, values = torch.cat([past[0], keys], dim=2), torch.cat([past[1], values], dim=2)
        return self._attend(rows, queries, (keys, values), view), (keys, values)

    def look(
        self, rows: Float[Tensor, "R D"], keys_values: KeysValues, view: View
    ) -> Float[Tensor, "R D"]:
        """Cross-attention to keys and values, one of them for each sequence of the view."""
        queries = self._heads(view.spread(self.query(rows)))
        return self._attend(rows, queries, keys_values, view)

    def keys_values_of_norm(self, normed: Float[Tensor, "N P C"], norm: nn.LayerNorm) -> KeysValues:
        """Keys and values of what a norm gives, its scale and shift folded into the weights.

        So what was normed needs no gradient, which would cost as much as the map itself.

        Args:
            normed: without scale and shift.
            norm: whose scale and shift are meant.
        """
        weight = torch.cat([self.key.weight, self.value.weight])
        bias = torch.cat([self.key.bias, self.value.bias]) + weight @ norm.bias
        keys, values = F.linear(normed, weight * norm.weight, bias).chunk(2, dim=-1)
        return self._heads(keys), self._heads(values)

    def _project(
        self, rows: Float[Tensor, "R D"], view: View, *maps: nn.Linear
    ) -> tuple[Float[Tensor, "N H S K"], ...]:
        """Rows through several linear maps, in one product."""
        weight, bias = (torch.cat([getattr(m, k) for m in maps]) for k in ("weight", "bias"))
        parts = view.spread(F.linear(rows, weight, bias)).chunk(len(maps), dim=-1)
        return tuple(map(self._heads, parts))

    def _attend(
        self,
        rows: Float[Tensor, "R D"],
        queries: Float[Tensor, "N H S K"],
        keys_values: KeysValues,
        view: View,
    ) -> Float[Tensor, "R D"]:
        attended = F.scaled_dot_product_attention(
            queries,
            *keys_values,
            attn_mask=view.mask,
            dropout_p=self.dropout_rate if self.training else 0.0,
        )
        attended = view.collect(attended.transpose(1, 2).flatten(2))
        return self.norm(rows + self.dropout(self.output(attended)))

    def _heads(self, rows: Float[Tensor, "N S D"]) -> Float[Tensor, "N H S K"]:
        return rows.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


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

    def forward(
        self, rows: Float[Tensor, "R D"], words: Float[Tensor, "V D"]
    ) -> Float[Tensor, "R V"]:
        return F.linear(self.norm(F.gelu(self.dense(rows))), words, self.bias)


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
            parts.append(self.words(tokens) + self.positions(positions))
        return self.dropout(self.norm(torch.cat(parts)))
