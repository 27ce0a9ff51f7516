"""TensorBoard shows what the lines say, and so does Weights & Biases."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.usefixtures("ray_session")


def test_tensorboard_shows_the_same(unbroken, metrics):
    board = EventAccumulator(str(unbroken / "tensorboard")).Reload()
    for split in ("train", "validation"):
        lines = [line for line in metrics(unbroken) if line["split"] == split]
        found = board.Scalars(f"{split}/loss")
        assert [event.step for event in found] == [line["step"] for line in lines]
        told = [line["loss"] for line in lines]
        assert [event.value for event in found] == pytest.approx(told)
