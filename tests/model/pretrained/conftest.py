"""What the tests of models trained by others share."""

import pytest
import torch
from safetensors.torch import save_file


@pytest.fixture
def folder(tmp_path):
    """Weights in two files, and what else lies beside them."""
    one = {"a.weight": torch.ones(2), "b.weight": torch.zeros(3)}
    save_file(one, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"a.bias": torch.arange(4)}, tmp_path / "model-00002-of-00002.safetensors")
    save_file({"other": torch.ones(1)}, tmp_path / "viaduct.safetensors")
    (tmp_path / "config.json").write_text("{}")
    return tmp_path
