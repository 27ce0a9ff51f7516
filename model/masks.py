"""Who sees whom (BLIP-2, figure 2), as masks that are true where a row may look.

Sequences are [queries; text], in the joint pass of ITC and ITG [queries; text; text to be written].
Nobody sees padding. Each row sees something, padding too, or its softmax would be NaN.
"""

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor


def text_sees_text(present: Bool[Tensor, "N T"]) -> Bool[Tensor, "N 1 1 T"]:
    """Text alone, in both directions."""
    return present[:, None, None, :]


def all_see_all(present: Bool[Tensor, "N T"], num_queries: int) -> Bool[Tensor, "N 1 1 S"]:
    """Queries and text see each other, for ITM; S = Q + T."""
    queries = present.new_ones(len(present), num_queries)
    return torch.cat([queries, present], dim=1)[:, None, None, :]


def apart(present: Bool[Tensor, "N T"], num_queries: int) -> Bool[Tensor, "N 1 S S"]:
    """Queries see queries, text sees text, for ITC; S = Q + T."""
    num_texts, width = present.shape
    seen = present.new_zeros(num_texts, 1, num_queries + width, num_queries + width)
    seen[:, :, :num_queries, :num_queries] = True
    seen[:, :, num_queries:, num_queries:] = text_sees_text(present)
    return seen


def apart_and_written(present: Bool[Tensor, "N T"], num_queries: int) -> Bool[Tensor, "N 1 S S"]:
    """As `apart`, and written text sees the queries and itself up to each token; S = Q + 2 T.

    What is written needs no mask for its padding: that stands behind all that is read of it.
    """
    num_texts, width = present.shape
    both = num_queries + width
    seen = present.new_zeros(num_texts, 1, both + width, both + width)
    seen[:, :, :both, :both] = apart(present, num_queries)
    seen[:, :, both:, :num_queries] = True
    seen[:, :, both:, both:] = present.new_ones(width, width).tril()
    return seen


def seen_and_written(num_queries: int, num_tokens: int, device: Any) -> Bool[Tensor, "1 1 S S"]:
    """Queries see queries, text sees the queries and itself up to each token, for ITG alone;
    S = Q + T. Padding stands behind the text, as in `apart_and_written`."""
    width = num_queries + num_tokens
    seen = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    seen[:num_queries, :num_queries] = True
    return seen[None, None]


def written(
    present: Bool[Tensor, "N S"], num_queries: int, num_tokens: int
) -> Bool[Tensor, "N 1 T P"]:
    """The last T tokens of a text see the queries and the text up to themselves; P = Q + S."""
    seen = all_see_all(present, num_queries)
    num_all = seen.shape[-1]
    earlier = present.new_ones(num_tokens, num_all).tril(num_all - num_tokens)
    return seen & earlier
