"""What a checkpoint of stage 1 has trained, and which features fit it.

Nothing here loads a frozen model, or imports what could: `model.checkpoint_frozen` does.
"""

import torch

from model.checkpoint import Checkpoint
from model.qformer import QFormerConfig
from model.stage1 import Stage1
from model.tokenizer import CaptionTokenizer
from pipeline.dataset import Dataset
from pipeline.errors import ConfigError, DatasetError


def load_stage1(checkpoint: Checkpoint, device: str = "cpu") -> Stage1:
    """The model of a stage-1 checkpoint, in eval mode.

    Raises:
        ConfigError: the checkpoint is of another stage.
        DatasetError: its files are damaged.
    """
    if checkpoint.stage != 1:
        raise ConfigError(f"{checkpoint.folder}: is of stage {checkpoint.stage}, not 1")
    return sized_stage1(checkpoint, checkpoint.qformer).eval().to(device)


def sized_stage1(checkpoint: Checkpoint, size: QFormerConfig) -> Stage1:
    """The weights of a stage-1 checkpoint in a module of this size, which fits them.

    Raises:
        DatasetError: the checkpoint's files are damaged.
    """
    tokenizer = CaptionTokenizer.from_json(checkpoint.read("tokenizer").decode())
    stage1 = Stage1(size, tokenizer)
    load_weights(stage1, checkpoint)
    return stage1


def load_weights(module: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's weights into a module of the same shape.

    Raises:
        DatasetError: names or shapes do not fit.
    """
    try:
        module.load_state_dict(checkpoint.tensors())
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise DatasetError(f"{checkpoint.folder}: weights: {' '.join(lines[:2])}") from error


def check_features(checkpoint: Checkpoint, features: Dataset) -> None:
    """Check that features come from the encoder that a checkpoint was trained on.

    Raises:
        ConfigError: they do not; both are named with the first difference.
    """
    needed, found = (
        checkpoint.lineage.frozen["encoder"],
        features.manifest.lineage.frozen["encoder"],
    )
    for key in needed:
        if key == "name" and all(its["name"].startswith("hf:") for its in (needed, found)):
            continue  # where a folder is says nothing; the digest says what it holds
        if needed[key] != found.get(key):
            raise ConfigError(
                f"{features.folder}: has features of another encoder than {checkpoint.folder} was "
                f"trained on: {key} {str(found.get(key))[:40]} there, not {str(needed[key])[:40]}"
            )
