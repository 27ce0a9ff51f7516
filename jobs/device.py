"""Where a command computes that needs no cluster."""

from typing import Literal

import torch

Device = Literal["auto", "cuda", "cpu"]
"""`auto` takes a GPU where there is one."""


def torch_device(device: Device) -> str:
    """The name of the device to compute on."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"
