"""The vision tower of a BLIP-2 of transformers as a frozen encoder."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval, Blip2Model

from model.pretrained.encoders import EncoderConfig, load_encoder
from model.pretrained.vision_tower import load_tower, save_tower
from pipeline.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = [Blip2ForImageTextRetrieval, Blip2ForConditionalGeneration, Blip2Model]


def load(folder, **options):
    return load_encoder(EncoderConfig(encoder=f"hf:{folder}", **options))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_before_the_last_norm(draw_blip2, tmp_path, kind):
    theirs, _ = draw_blip2(kind, tmp_path)
    encoder = load(tmp_path)
    pictures = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    seen = []
    norm = theirs.vision_model.post_layernorm
    norm.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    last = theirs.vision_model(pixel_values=pictures).last_hidden_state
    tokens = encoder(pictures)
    torch.testing.assert_close(tokens, seen[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(norm(tokens.clone()), last, rtol=0, atol=1e-6)
    assert tokens.std() > 0.1


def test_the_spec_says_what_the_tower_is(draw_blip2, tmp_path):
    draw_blip2(Blip2Model, tmp_path)
    spec = load(tmp_path).spec
    assert (spec.name, spec.weights, spec.layer) == (f"hf:{tmp_path}", "pretrained", -1)
    assert (spec.num_tokens, spec.width) == (5, 16)
    assert spec.transform["crop_mode"] == "squash"
    assert spec.transform["input_size"] == (3, 28, 28)


def test_pictures_are_seen_as_by_its_processor(draw_blip2, tmp_path):
    _, processor = draw_blip2(Blip2Model, tmp_path)
    picture = Image.radial_gradient("L").resize((50, 40)).convert("RGB")
    ours = load(tmp_path).transform()(picture)
    theirs = processor(images=picture, return_tensors="pt").pixel_values[0]
    assert (ours - theirs).abs().max() < 1.01 / 255 / 0.26  # a grey level
    assert ours.std() > 0.5


def test_the_digest_is_the_frozen_towers(draw_blip2, tmp_path):
    """Of two stages with one tower it is the same, though `ln_vision` trained between them."""
    digests = set()
    theirs, processor = draw_blip2(Blip2Model)
    for name in ("a", "b"):
        theirs.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
        digests.add(load(tmp_path / name).spec.weights_digest)
        torch.nn.init.normal_(theirs.vision_model.post_layernorm.weight)
        torch.nn.init.normal_(theirs.query_tokens)
    assert len(digests) == 1
    torch.nn.init.normal_(theirs.vision_model.embeddings.class_embedding)
    theirs.save_pretrained(tmp_path / "b")
    assert load(tmp_path / "b").spec.weights_digest not in digests


def test_weights_may_be_half_precision_and_in_several_files(draw_blip2, tmp_path):
    theirs, processor = draw_blip2(Blip2Model)
    theirs.half().save_pretrained(tmp_path, max_shard_size="20KB")
    processor.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    tower, _ = load_tower(str(tmp_path))
    expected = theirs.vision_model.embeddings.class_embedding.float()
    assert torch.equal(tower.embeddings.class_embedding, expected)


def test_a_tower_is_saved_and_loaded(draw_blip2, tmp_path):
    draw_blip2(Blip2Model, tmp_path / "blip2")
    tower, transform = load_tower(str(tmp_path / "blip2"))
    save_tower(tower, transform, tmp_path / "tower")
    again = load(tmp_path / "tower").spec
    assert again.weights_digest == load(tmp_path / "blip2").spec.weights_digest
    assert again.transform == transform


def test_what_is_no_tower_is_named(draw_blip2, tmp_path):
    with pytest.raises(ConfigError, match=r"/none: no such folder"):
        load(tmp_path / "none")
    with pytest.raises(ConfigError, match="is no BLIP-2 of transformers"):
        load(tmp_path)
    draw_blip2(Blip2Model, tmp_path)
    with pytest.raises(ConfigError, match=r"weights: 'random', but hf:.* has its own"):
        load(tmp_path, weights="random")

    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = "vision_model.encoder.layers.1.mlp.fc1.bias"
    value = tensors.pop(name)
    save_file(tensors, file)
    with pytest.raises(ConfigError, match=r"Missing key.*encoder\.layers\.1\.mlp\.fc1\.bias"):
        load(tmp_path)
    save_file(tensors | {name: value, "vision_model.odd": value.clone()}, file)
    with pytest.raises(ConfigError, match=r"Unexpected key.*odd"):
        load(tmp_path)
    file.write_bytes(b"x" * 100)
    with pytest.raises(ConfigError, match=r"model\.safetensors: cannot be read"):
        load(tmp_path)
    file.unlink()
    with pytest.raises(ConfigError, match=r"holds no model\*\.safetensors"):
        load(tmp_path)


def test_a_folder_of_another_model_is_named(draw_blip2, tmp_path):
    theirs, _ = draw_blip2(Blip2Model)
    theirs.language_model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "BlipImageProcessor"})
    )
    with pytest.raises(ConfigError, match="vision tower: Missing key"):
        load(tmp_path)
