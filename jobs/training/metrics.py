"""What a training says of itself: a line of the log, files of lines, boards."""

import logging
from collections.abc import Sequence

from jobs.metric_lines import METRICS
from jobs.training.boards import Board
from jobs.training.step_lines import StepLines
from pipeline.storage import Folder

logger = logging.getLogger(__name__)

CAPTIONS = "validation_captions.jsonl"


class Metrics:
    """Numbers and captions, in files and on boards.

    Args:
        folder: of the training.
        step: of the checkpoint that it goes on from: what was said of later ones is taken back.
        boards: see there.
    """

    def __init__(self, folder: Folder, step: int, boards: Sequence[Board]) -> None:
        self._numbers = StepLines(folder, METRICS, step)
        self._captions = StepLines(folder, CAPTIONS, step)
        self._boards = boards

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """Tell numbers of a step."""
        values = {name: float(f"{value:.8g}") for name, value in values.items()}
        self._numbers.add(step, {"split": split} | values)
        told = " ".join(f"{name}={value:.4g}" for name, value in values.items())
        logger.info("%s step=%d %s", split, step, told)
        for board in self._boards:
            board.numbers(step, split, values)

    def write_captions(self, step: int, lines: Sequence[dict[str, str]]) -> None:
        """Tell captions of held-out pictures, if there are any."""
        if not lines:
            return
        for line in lines:
            self._captions.add(step, line)
        for board in self._boards:
            board.texts(step, lines)

    def validations(self) -> dict[int, dict[str, float]]:
        """What was measured on held-out pairs, by step."""
        lines = self._numbers.read()
        return {line.pop("step"): line for line in lines if line.pop("split") == "validation"}

    def flush(self) -> None:
        """Have it all where it is kept."""
        self._numbers.flush()
        self._captions.flush()
        for board in self._boards:
            board.flush()

    def close(self) -> None:
        """Flush, and end."""
        self.flush()
        for board in self._boards:
            board.close()
