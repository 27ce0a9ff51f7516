"""Tensors across the ranks of a training; with one process each of these does nothing."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, cast

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

_alone: ContextVar[bool] = ContextVar("alone", default=False)


def num_ranks() -> int:
    together = dist.is_available() and dist.is_initialized() and not _alone.get()
    return dist.get_world_size() if together else 1


def rank() -> int:
    return dist.get_rank() if num_ranks() > 1 else 0


def gathered(values: Shaped[Tensor, "B ..."], *, gradient: bool) -> Shaped[Tensor, "G ..."]:
    """All ranks' values in the order of ranks; every rank has equally many.

    Args:
        values: of this rank.
        gradient: whether the loss of every rank reaches the rank whose values it used. Without,
            the gradient of a contrastive loss comes out too short.
    """
    if num_ranks() == 1:
        return values
    if gradient:
        return cast(Tensor, _Gathered.apply(values))
    return _all_gather(values)


def _all_gather(values: Tensor) -> Tensor:
    values = values.detach().contiguous()
    parts = [torch.empty_like(values) for _ in range(num_ranks())]
    dist.all_gather(parts, values)
    return torch.cat(parts)


class _Gathered(torch.autograd.Function):
    """PyTorch's own (2.14) returns wrong gradients over gloo where these come in transposed."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        return _all_gather(values)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def anywhere(flag: Bool[Tensor, ""]) -> Bool[Tensor, ""]:
    """Whether it is true on any rank."""
    if num_ranks() == 1:
        return flag
    found = flag.int()
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return found.bool()


def mean_over_ranks(total: Tensor, count: Tensor) -> Tensor:
    """A rank's sum over the mean count of all ranks, so that the mean over the ranks is exact.

    Ranks hold different numbers of tokens; dividing by its own would weigh a rank's tokens by how
    few they are.
    """
    return over_mean_count(total, summed(count.to(total.dtype)))


def over_mean_count(total: Tensor, of_all: Tensor) -> Tensor:
    """As `mean_over_ranks`, of a count that is `summed` already."""
    share = of_all / num_ranks()
    return total / share.clamp(min=torch.finfo(total.dtype).tiny)


def summed(count: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The sum of a count over the ranks, without gradient."""
    total = count.detach().clone()
    if num_ranks() > 1:
        dist.all_reduce(total)
    return total


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within it this rank reckons as if it were the only one, so that others need not take part."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)
