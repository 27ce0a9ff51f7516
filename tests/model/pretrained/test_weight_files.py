"""Folders of weights: read tensor by tensor."""

import pytest
import torch
from safetensors.torch import save_file

from model.pretrained.weight_files import read_tensors
from pipeline.errors import ConfigError


@pytest.fixture
def folder(tmp_path):
    """In two files."""
    one = {"a.weight": torch.ones(2), "b.weight": torch.zeros(3)}
    save_file(one, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"a.bias": torch.arange(4)}, tmp_path / "model-00002-of-00002.safetensors")
    save_file({"other": torch.ones(1)}, tmp_path / "viaduct.safetensors")
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


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
