"""Folders of weights: read tensor by tensor."""

import pytest
import torch

from model.pretrained.weight_files import read_tensors
from pipeline.errors import ConfigError


def of_a(name: str) -> bool:
    return name.startswith("a.")


def test_only_what_is_wanted_is_read_and_the_rest_is_named(folder):
    tensors, others = read_tensors(folder, of_a)
    assert sorted(tensors) == ["a.bias", "a.weight"]
    assert torch.equal(tensors["a.bias"], torch.arange(4))
    assert others == ["b.weight"]


def test_folders_without_weights_and_damaged_files_are_named(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty: holds no model\*\.safetensors"):
        read_tensors(tmp_path / "empty", of_a)
    file = folder / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ConfigError, match=r"00002\.safetensors: cannot be read"):
        read_tensors(folder, of_a)
