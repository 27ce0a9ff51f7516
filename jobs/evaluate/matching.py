"""ITM's accuracy: on each pair, its picture with another's caption, its caption with another's."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from indexes.intervals import bootstrap
from jobs.progress import Progress
from model.itc import same_pairs
from model.itm import draw_negatives
from model.stage1 import Stage1
from pipeline.errors import ConfigError
from pipeline.loader import Pairs
from pipeline.order import held_out_batches

_AT_ONCE = 64


def match_accuracy(stage1: Stage1, pairs: Pairs, split: str) -> dict[str, Any]:
    """The share of pairs and non-pairs that ITM tells right, with what saying no always gives.

    Args:
        stage1: in eval mode.
        pairs: of the split.
        split: its name, for the error.

    Raises:
        ConfigError: no picture has another one's caption to meet.
    """
    right, counted = (np.concatenate(part) for part in zip(*_outcomes(stage1, pairs), strict=True))
    if not counted.any():
        raise ConfigError(f"split {split!r}: no picture has another one's caption to meet")
    accuracy, *_ = bootstrap(right.sum(axis=1)[:, None], counted.sum(axis=1)[:, None])
    return {"accuracy": accuracy.to_json(), "prior": 2 / 3, "num_pairs": int(counted.sum())}


def _outcomes(stage1: Stage1, pairs: Pairs) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For batches of pictures bool[B, 3]: whether ITM is right, and whether it was asked."""
    progress = Progress("itm", len(pairs), 0, "pictures")
    device = stage1.temperature.device
    for held_out in held_out_batches(len(pairs), _AT_ONCE):
        drawn = pairs.batch(held_out.pictures, held_out.caption_draw)
        batch = stage1.batch(drawn.tokens, drawn.texts, drawn.picture, drawn.caption).to(device)
        same = same_pairs(
            batch.picture, batch.caption, all_picture=batch.picture, all_caption=batch.caption
        )
        by_chance = [
            draw_negatives(same.float(), same, hardness=0.0, uniform=uniform)
            for uniform in torch.from_numpy(held_out.negative_draw).to(device)
        ]
        with torch.inference_mode():
            logits, labels, counted = stage1.match(
                batch, stage1.image_keys(batch.tokens), *by_chance
            )
        right = (logits.argmax(dim=2) == labels) & counted
        progress.advance(len(labels))
        yield right.cpu().numpy(), counted.cpu().numpy()
    progress.close()
