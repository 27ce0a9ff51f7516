"""What is computed in full precision, whatever the layers are in."""

import torch
from jaxtyping import Float
from torch import Tensor


def exact(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """In float32 at least: losses of scores in half precision would be rounded."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
