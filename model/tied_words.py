"""Word embeddings that are looked up and also score words, with one gradient for both.

Scores give all words a gradient, lookups a few rows of it. PyTorch adds the few to the many where
they lie only if the many come last, and copies all words otherwise; but scores come after lookups,
and so their gradients before. Here that of the scores is therefore computed last.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor


class TiedWords:
    """Word embeddings as scores use them; to be made before any of the words is looked up.

    Args:
        words: the embeddings [V, D].
    """

    def __init__(self, words: Float[Tensor, "V D"]) -> None:
        self._left: list[tuple[Tensor, Tensor]] = []
        self._words: Tensor = _Last.apply(words, self._left)

    def scores(self, rows: Float[Tensor, "R D"], bias: Float[Tensor, " V"]) -> Float[Tensor, "R V"]:
        """Of each word, as a linear map gives them."""
        scores: Tensor = _Scores.apply(rows, self._words, bias, self._left)
        return scores


class _Last(torch.autograd.Function):
    """The words as they are; what was there first has its gradient last."""

    @staticmethod
    def forward(context: Any, words: Tensor, left: list[tuple[Tensor, Tensor]]) -> Tensor:
        context.left, context.dtype = left, words.dtype
        context.set_materialize_grads(False)
        return words.view_as(words)

    @staticmethod
    def backward(context: Any, _: None) -> tuple[Tensor | None, None]:
        parts = [gradient.T @ rows.to(gradient.dtype) for gradient, rows in context.left]
        context.left.clear()
        return (sum(parts[1:], start=parts[0]).to(context.dtype) if parts else None), None


class _Scores(torch.autograd.Function):
    """A linear map that leaves the gradient of its weights to `_Last`."""

    @staticmethod
    def forward(
        context: Any, rows: Tensor, words: Tensor, bias: Tensor, left: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        context.save_for_backward(rows, words, bias)
        context.left = left
        return F.linear(rows, words, bias)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        rows, words, bias = context.saved_tensors
        of_rows, of_words, of_bias, _ = context.needs_input_grad
        if of_words:
            context.left.append((gradient, rows))
        # The gradient may be of less precision than the weights, as the scores then were.
        return (
            (gradient @ words.to(gradient.dtype)).to(rows.dtype) if of_rows else None,
            None,
            gradient.sum(0).to(bias.dtype) if of_bias else None,
            None,
        )
