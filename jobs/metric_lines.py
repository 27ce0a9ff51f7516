"""What lies in a training's folder, for whoever reads it without PyTorch: names, and metrics."""

import json
from typing import Any

from pipeline.errors import DatasetError
from pipeline.storage import Folder

METRICS, CHECKPOINT, CHECKPOINTS = "metrics.jsonl", "checkpoint.json", "checkpoints"
BEST = "best.json"
"""In `checkpoints/`: which of them is the best."""


def read_metrics(folder: Folder) -> list[dict[str, Any]]:
    """The lines of a training's metrics.jsonl, each with `step` and `split`; none without a file.

    A last line that is still being written is passed over.

    Raises:
        DatasetError: an earlier line is damaged; it is named.
    """
    if folder.size(METRICS) is None:
        return []
    texts = folder.read(METRICS).decode(errors="replace").splitlines()
    lines = []
    for number, text in enumerate(texts, 1):
        where = f"{folder}/{METRICS}: line {number}"
        try:
            line = json.loads(text)
        except ValueError:
            if number == len(texts):
                break
            raise DatasetError(f"{where} is not JSON") from None
        try:
            lines.append({**line, "step": int(line["step"]), "split": str(line["split"])})
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(f"{where}: field missing or wrong: {error}") from error
    return lines
