"""What another format has no place for comes back as it was, or is one clear line."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.exchange.kept_beside import FILE, Kept
from pipeline.errors import ConfigError
from pipeline.lineage import Lineage, Parent

KEPT = Kept(
    1,
    250,
    {"width": 24, "dropout": 0.1},
    Lineage("train-stage1", {"steps": 9}, (Parent("features", "ab"),), {"encoder": {"name": "x"}}),
    '{"a": "\u00e9"}',
    "cd",
    {"temperature": torch.tensor(0.0625), "qformer.head.bias": torch.randn(7)},
)


def test_it_comes_back(tmp_path):
    assert Kept.read(tmp_path) is None
    KEPT.write(tmp_path)
    again = Kept.read(tmp_path)
    tensors = again.tensors
    assert {**vars(again), "tensors": 0} == {**vars(KEPT), "tensors": 0}
    assert tensors.keys() == KEPT.tensors.keys()
    assert all(torch.equal(tensors[name], value) for name, value in KEPT.tensors.items())


def test_it_need_not_have_tensors(tmp_path):
    Kept(2, 0, {}, KEPT.lineage, None, None, {}).write(tmp_path)
    assert Kept.read(tmp_path).tensors == {}


def test_damage_and_later_formats_are_named(tmp_path):
    KEPT.write(tmp_path)
    file = tmp_path / FILE
    whole = file.read_bytes()
    file.write_bytes(whole[:50])
    with pytest.raises(ConfigError, match=rf"{FILE}: damaged \(.*\); remove it"):
        Kept.read(tmp_path)
    file.write_bytes(whole.replace(b"viaduct-beside/1", b"viaduct-beside/9"))
    with pytest.raises(ConfigError, match="is of the format viaduct-beside/9"):
        Kept.read(tmp_path)
    file.write_bytes(whole)
    save_file(load_file(file), file)  # without what it says
    with pytest.raises(ConfigError, match=f"{FILE}: damaged"):
        Kept.read(tmp_path)
