"""What the tests of exchanged weights share: a BLIP-2 of transformers, and ours made of it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Blip2ForImageTextRetrieval

from model.exchange.hugging_face import (
    folder_tokenizer,
    from_hugging_face,
    read_config,
    read_hugging_face,
)


@pytest.fixture
def pictures() -> Tensor:
    """Three, of 28 x 28 pixels of noise."""
    return torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def tokens_of():
    """Gives what goes into the last norm of their vision tower."""

    def tokens(theirs, values: Tensor) -> Tensor:
        seen: list[Tensor] = []
        hook = theirs.vision_model.encoder.register_forward_hook(
            lambda *args: seen.append(args[2].last_hidden_state)
        )
        theirs.vision_model(pixel_values=values)
        hook.remove()
        return seen[0]

    return tokens


@pytest.fixture
def retrieval(draw_blip2, tmp_path):
    """A folder of stage 1, its model and its processor."""
    folder = tmp_path / "retrieval"
    return folder, *draw_blip2(Blip2ForImageTextRetrieval, folder)


@pytest.fixture
def imported():
    """Converts the model of a folder by ours."""

    def convert(folder: Path):
        theirs, _ = read_hugging_face(folder)
        found = from_hugging_face(theirs, read_config(folder), {})
        return found.stage1(folder_tokenizer(folder)) if found.stage == 1 else found.stage2()

    return convert
