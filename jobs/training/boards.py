"""Where people watch a training: TensorBoard, Weights & Biases."""

import importlib.util
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pipeline.errors import ConfigError, first_line
from pipeline.storage import Folder

_WANDB_ID = ".wandb_id"
"""Of the run at Weights & Biases, in the training's folder: who goes on goes on with it."""


class Board(Protocol):
    """One of them."""

    def numbers(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Show metrics of a step."""

    def texts(self, step: int, lines: Sequence[Mapping[str, str]]) -> None:
        """Show the captions of a validation, all of the same fields."""

    def flush(self) -> None:
        """Have it all on the disk."""

    def close(self) -> None:
        """Show nothing any more."""


class TensorBoard:
    """Files for TensorBoard, in `tensorboard/` of a local folder.

    Args:
        folder: of the training.
        step: what was shown of later ones is taken back.
    """

    def __init__(self, folder: Folder, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(f"{folder.path}/tensorboard", purge_step=step + 1)

    def numbers(self, step: int, split: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{split}/{name}", value, step)

    def texts(self, step: int, lines: Sequence[Mapping[str, str]]) -> None:
        rows = [list(lines[0]), ["---"] * len(lines[0]), *(list(line.values()) for line in lines)]
        cells = ([cell.replace("|", "\\|") for cell in row] for row in rows)
        table = "\n".join(f"| {' | '.join(row)} |" for row in cells)
        self._writer.add_text("validation/captions", table, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run at Weights & Biases.

    Args:
        project: its project.
        folder: of the training; a local one holds its files too.
        config: what is to be read beside its curves.

    Raises:
        ConfigError: it cannot be begun: no login, no such project.
    """

    def __init__(self, project: str, folder: Folder, config: dict[str, Any]) -> None:
        import wandb

        if folder.size(_WANDB_ID) is None:
            folder.publish(_WANDB_ID, uuid.uuid4().hex[:16].encode())
        try:
            self._run = wandb.init(
                project=project,
                name=folder.name,
                id=folder.read(_WANDB_ID).decode(),
                resume="allow",
                dir=folder.path if folder.is_local else None,
                config=config,
            )
        except wandb.errors.Error as error:
            raise ConfigError(f"wandb: {project}: cannot be begun: {first_line(error)}") from error
        # A training that goes on from a checkpoint tells some steps again, which its own count of
        # calls would refuse.
        self._run.define_metric("*", step_metric="step")
        self._table = wandb.Table

    def numbers(self, step: int, split: str, values: Mapping[str, float]) -> None:
        shown = {f"{split}/{name}": value for name, value in values.items()}
        self._run.log({"step": step} | shown)

    def texts(self, step: int, lines: Sequence[Mapping[str, str]]) -> None:
        table = self._table(list(lines[0]), [list(line.values()) for line in lines])
        self._run.log({"step": step, "validation/captions": table})

    def flush(self) -> None:
        """It keeps its own time."""

    def close(self) -> None:
        self._run.finish()


def check_wandb() -> None:
    """Raises ConfigError where the package of Weights & Biases is not installed."""
    if importlib.util.find_spec("wandb") is None:
        raise ConfigError("wandb: the package is not installed: pip install wandb")
