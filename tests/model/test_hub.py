"""Folders of weights: found, read tensor by tensor, and told apart."""

import hashlib

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from model import hub
from model.hub import folder_digest, local_folder, read_tensors, tensors_digest
from pipeline.errors import ConfigError
from pipeline.storage import Folder


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
    (folder / "config.json").write_text('{"a": 1}')
    assert folder_digest(folder) != digest


def test_names_of_the_hub_are_fetched_and_paths_are_not(tmp_path, monkeypatch):
    asked = []

    def fetch(name: str, allow_patterns: list[str]) -> str:
        asked.append(name)
        if name == "no/where":
            raise LocalEntryNotFoundError("not here, and no network")
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    assert local_folder(str(tmp_path)) == tmp_path
    assert asked == []
    assert local_folder("Salesforce/blip2-opt-2.7b") == tmp_path
    assert asked == ["Salesforce/blip2-opt-2.7b"]
    for path in ("blip2", "./a/b", "/a/b", "~/b", "a/b/c"):
        with pytest.raises(ConfigError, match=f"{path}: no such folder$"):
            local_folder(path)
    with pytest.raises(ConfigError, match=r"no/where: no such folder, and cannot be fetched \(not"):
        local_folder("no/where")
    assert len(asked) == 2


def test_folders_without_weights_and_damaged_files_are_named(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty: holds no model\*\.safetensors"):
        read_tensors(tmp_path / "empty", of_a)
    file = folder / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ConfigError, match=r"00002\.safetensors: cannot be read"):
        read_tensors(folder, of_a)
