"""CLIP's similarities are those of transformers' own pass, whatever the batch."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BertConfig, CLIPModel, CLIPProcessor

from model.pretrained.clip import Clip, ClipJudge
from pipeline.errors import ConfigError, DatasetError

TEXTS = ["a red boat", "two dogs", "", "a plate of food and a glass of water " * 9]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, save_clip) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip") / "small-clip")


@pytest.fixture(scope="module")
def judge(folder) -> ClipJudge:
    return ClipJudge(Clip.of(str(folder)))


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Three of different shapes."""
    dice = np.random.default_rng(0)
    sizes = ((30, 60), (64, 40), (28, 28))
    return [Image.fromarray(dice.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


def test_similarities_are_those_of_transformers(folder, judge, pictures):
    model = CLIPModel.from_pretrained(folder).eval()
    processor = CLIPProcessor.from_pretrained(folder)
    inputs = processor(
        text=TEXTS,
        images=pictures,
        return_tensors="pt",
        padding=True,
        truncation=True,
        max_length=40,
    )
    with torch.no_grad():
        expected = model(**inputs).logits_per_image / model.logit_scale.exp()
    found = torch.tensor(judge.similarities(pictures, [TEXTS] * 3))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert found.max() - found.min() > 0.2


def test_each_picture_has_texts_of_its_own(judge, pictures):
    every = judge.similarities(pictures, [TEXTS] * 3)
    texts = [[TEXTS[2], TEXTS[0], TEXTS[0]], [], [TEXTS[3]]]
    found = judge.similarities(pictures, texts)
    assert found[0] == pytest.approx([every[0][2], every[0][0], every[0][0]], abs=1e-6)
    assert found[1] == []
    assert found[2] == pytest.approx([every[2][3]], abs=1e-6)
    assert judge.similarities([], []) == []
    assert judge.similarities(pictures[:2], [[], []]) == [[], []]
    with pytest.raises(ValueError, match="texts of 1 pictures for 3 pictures"):
        judge.similarities(pictures, [TEXTS])


def test_a_folder_is_known_by_its_name_and_by_what_it_holds(tmp_path, folder):
    clip = Clip.of(str(folder))
    assert (clip.name, clip.location) == ("small-clip", str(folder))
    copy = shutil.copytree(folder, tmp_path / "elsewhere" / "small-clip")
    assert Clip.of(f"{copy}/").name == clip.name
    assert Clip.of(str(copy)).digest == clip.digest
    tokenizer = copy / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    assert Clip.of(str(copy)).digest != clip.digest


def test_a_worker_with_another_one_refuses(tmp_path, folder, save_clip):
    clip = Clip.of(str(folder))
    other = save_clip(tmp_path / "other", seed=1)
    with pytest.raises(DatasetError, match="this worker has another one"):
        ClipJudge(Clip(clip.name, str(other), clip.digest))


def test_what_is_no_clip_is_named(tmp_path, folder):
    with pytest.raises(ConfigError, match="nowhere: no such folder"):
        Clip.of(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="cannot be had"):
        Clip.of(str(tmp_path))
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(ConfigError, match="is a model of type 'bert', not a CLIP"):
        Clip.of(str(tmp_path / "bert"))


def test_a_weight_that_is_not_there_is_named(tmp_path, folder):
    copy = shutil.copytree(folder, tmp_path / "copy")
    weights = load_file(copy / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"visual_projection\.weight: missing"):
        ClipJudge(Clip.of(str(copy)))


def test_a_clip_without_its_tokenizer_is_named(tmp_path, folder):
    copy = shutil.copytree(folder, tmp_path / "copy")
    for file in copy.glob("*token*"):
        file.unlink()
    with pytest.raises(ConfigError, match=r"cannot be loaded|its tokenizer has \d words"):
        ClipJudge(Clip.of(str(copy)))
