"""ITG: the caption, word for word, after what the queries kept of the picture.

BLIP-2, section 3.2.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from model.packing import Texts
from model.precision import exact


def to_write(
    ids: Int[Tensor, "B T"], present: Bool[Tensor, "B T"], dec: int
) -> tuple[Texts, Int[Tensor, " W"]]:
    """Texts as they are written: [DEC] in place of [CLS], and only tokens that another follows.

    Args:
        ids: [CLS], words, [SEP]; on the CPU.
        present: which of them are no padding.
        dec: the id of [DEC].

    Returns:
        The texts, and the token that follows each of theirs.
    """
    followed = torch.cat([present[:, 1:], torch.zeros_like(present[:, :1])], dim=1)
    written = torch.cat([torch.full_like(ids[:, :1], dec), ids[:, 1:]], dim=1)
    texts = Texts.packed(written, followed)
    return texts, ids.flatten()[texts.places + 1]


def caption_loss(
    scores: Float[Tensor, "W V"], targets: Int[Tensor, " W"], *, label_smoothing: float = 0.1
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Cross-entropy of the next token.

    Returns:
        Sums over the targets in nats, with smoothing and without.
    """
    logs = exact(scores).log_softmax(dim=-1)
    # In this order the gradient of the sum, which is one number, is added to that of the picked.
    spread = -logs.sum() / logs.shape[1]
    plain = -logs.gather(1, targets[:, None]).sum()
    return (1 - label_smoothing) * plain + label_smoothing * spread, plain
