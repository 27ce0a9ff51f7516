"""Weights are told apart, and known again however they are stored."""

import hashlib

import torch
from safetensors.torch import save_file

from model.pretrained.digests import folder_digest, tensors_digest, weights_digest
from model.pretrained.weight_files import read_tensors
from pipeline.storage import Folder


def of_a(name: str) -> bool:
    return name.startswith("a.")


def test_a_digest_covers_what_is_wanted_however_it_is_stored(folder, tmp_path_factory):
    whole = tmp_path_factory.mktemp("whole")
    tensors, _ = read_tensors(folder, lambda name: True)
    save_file(tensors, whole / "model.safetensors")
    digest = tensors_digest(folder, of_a)
    assert tensors_digest(whole, of_a) == digest
    save_file(tensors | {"b.weight": torch.ones(3)}, whole / "model.safetensors")
    assert tensors_digest(whole, of_a) == digest
    for change in (
        {"a.bias": torch.zeros(4)},
        {"a.bias": torch.arange(4.0)},
        {"a.x": torch.ones(1)},
    ):
        save_file(tensors | change, whole / "model.safetensors")
        assert tensors_digest(whole, of_a) != digest


def test_a_folders_digest_is_of_its_files(folder):
    digest = folder_digest(folder)
    assert Folder.at(str(folder)).digest("config.json") == hashlib.sha256(b"{}").hexdigest()
    (folder / "notes.txt").write_text("x")
    assert folder_digest(folder) == digest
    assert folder_digest(folder, "*.json", "*.txt") != folder_digest(folder, "*.json") == digest
    (folder / "config.json").write_text('{"a": 1}')
    assert folder_digest(folder) != digest


def test_a_models_digest_covers_names_types_shapes_and_values():
    one = {"a": torch.ones(2), "b": torch.zeros(3)}
    others = [
        {"a": torch.ones(2), "c": torch.zeros(3)},
        {"a": torch.ones(2), "b": torch.zeros(3).half()},
        {"a": torch.ones(2), "b": torch.zeros(3, 1)},
        {"a": torch.ones(2), "b": torch.tensor([0.0, 0.0, 1e-30])},
    ]

    def digest(tensors: dict[str, torch.Tensor]) -> str:
        return weights_digest(torch.nn.ParameterDict(tensors))

    assert digest(dict(reversed(one.items()))) == digest(one)
    assert len({digest(tensors) for tensors in [one, *others]}) == 5
