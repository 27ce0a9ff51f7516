"""What is measured of this machine is plausible, and a plan can be made of it."""

import os
import time

import numpy as np
import pytest
import torch

from jobs.cli import main
from jobs.plan.calibrate import cropped, disk_rates, encoder_rate, per_second, web_picture
from jobs.plan.rates import Calibration
from model.pretrained.encoders import EncoderConfig, load_encoder
from pipeline.pictures import PictureConfig, decode_stored, store


def test_calls_a_second():
    assert 50 < per_second(lambda _: time.sleep(0.01), seconds=0.1) < 101


def test_pictures_are_like_those_of_the_web():
    stored = store(web_picture(0), PictureConfig())
    assert stored.original_size_px == (800, 600)
    assert stored.size_px == (341, 256)
    assert web_picture(0) != web_picture(1)


@pytest.mark.parametrize("name", ["timm:test_vit", "offline:efficientnet_lite0"])
def test_what_is_timed_of_the_cores_is_what_features_does_there(name):
    """Decoding and cropping to bytes; an encoder with weights gives the same crop."""
    weights = "random" if name.startswith("timm:") else "pretrained"
    encoder = load_encoder(EncoderConfig(encoder=name, weights=weights))
    stored = [store(web_picture(number), PictureConfig()).jpeg for number in range(2)]
    run = cropped(name, stored)
    for at in range(4):
        expected = encoder.crop()(decode_stored(stored[at % 2]))
        assert expected.dtype == np.uint8
        np.testing.assert_array_equal(run(at), expected)


def test_the_disk_is_left_as_it_was(tmp_path):
    write, read = disk_rates(str(tmp_path), size=1 << 25)
    assert write > 0
    assert read > 0
    assert os.listdir(tmp_path) == []


def test_a_vit_is_measured_through_a_few_blocks():
    pictures, flops = encoder_rate("timm:vit_tiny_patch16_224", torch.device("cpu"))
    tokens, width = 197, 192
    block = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width
    assert flops / pictures == pytest.approx(3 * block + 2 * 196 * 768 * width)


@pytest.mark.slow
def test_a_machine_is_measured_and_then_planned_with(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "--calibrate", "--recipe", "demo"]) == 0
    measured = Calibration.read("rates.json")
    assert measured is not None
    assert 0 < measured.rates.needed("encoder_share") <= 1
    assert 0 < measured.rates.needed("train_share") <= 1
    capsys.readouterr()
    assert main(["plan", "--recipe", "demo", "--pairs", "2500"]) == 0
    assert "train-stage1" in capsys.readouterr().out
