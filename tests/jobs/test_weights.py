"""Weights come from LAVIS and transformers and go back; docs/weights.md says how, line by line."""

import contextlib
import io
import json
import re
import shlex
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval

from jobs.cli import main
from model.checkpoint import Checkpoint
from model.checkpoint_frozen import load_encoder_of, load_stage2
from model.checkpoint_models import check_features, load_stage1
from model.exchange.lavis import to_lavis
from model.pretrained import encoders
from model.qformer import QFormerConfig
from model.stage1 import Stage1
from model.stage2 import Stage2
from model.tokenizer import CaptionTokenizer
from pipeline.dataset import Dataset

DOCS = Path(__file__).parents[2] / "docs" / "weights.md"


def commands() -> list[list[str]]:
    """What docs/weights.md tells the reader to type."""
    lines = re.findall(r"^    viaduct (.+)$", DOCS.read_text(), flags=re.MULTILINE)
    return [shlex.split(line) for line in lines]


def snippet() -> str:
    (found,) = re.findall(r"```python\n(.+?)```", DOCS.read_text(), flags=re.DOTALL)
    return found


def same_weights(one: str, other: str) -> None:
    """Every file of a checkpoint but its record is the same, and so is what it belongs to."""
    a, b = Checkpoint.open(one), Checkpoint.open(other)
    assert a.files == b.files
    assert a.config == b.config
    assert a.step == b.step
    assert a.lineage.frozen == b.lineage.frozen


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Smooth, since the two sides resize with other libraries, and a caption turns on a hair.
    Image.radial_gradient("L").resize((60, 40)).convert("RGB").save("boat.jpg")
    return tmp_path


@pytest.fixture
def in_place_of_eva(monkeypatch):
    """A small ViT with random weights, 64 wide, in place of EVA-CLIP's g, which is on a hub."""

    def pretrained(name: str) -> torch.nn.Module:
        assert name == "eva_giant_patch14_clip_224.laion400m"
        torch.manual_seed(0)
        return timm.create_model("test_vit", num_classes=0)

    monkeypatch.setattr(encoders, "_pretrained", pretrained)


@pytest.fixture
def bert(here, draw_blip2) -> CaptionTokenizer:
    """That of a folder `bert-base-uncased`, where `hf:bert-base-uncased` finds it."""
    _, processor = draw_blip2(Blip2ForImageTextRetrieval)
    processor.tokenizer.save_pretrained("bert-base-uncased")
    tokenizer = CaptionTokenizer.of_model("hf:bert-base-uncased", without=("<image>",))
    (here / "bert-base-uncased" / "tokenizer.json").write_text(tokenizer.to_json())
    return tokenizer


def draw_lavis(
    home: Path, tokenizer: CaptionTokenizer, language_width: int, vision_width: int = 64
) -> None:
    """blip2_pretrained.pth and blip2_pretrained_opt2.7b.pth, without the frozen encoder."""
    config = QFormerConfig(
        vision_width=vision_width,
        vocab_size=len(tokenizer),
        width=64,
        num_layers=3,
        num_heads=1,
        feed_forward_width=80,
        num_queries=4,
        embed_dim=6,
        max_positions=32,
        max_text_tokens=32,
    )
    torch.manual_seed(0)
    for name, module in (
        ("blip2_pretrained.pth", Stage1(config, tokenizer)),
        ("blip2_pretrained_opt2.7b.pth", Stage2(config, language_width)),
    ):
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        theirs = to_lavis(module.state_dict(), max_positions=32)
        torch.save({"model": theirs}, home / name)


def draw_tuned_lavis(home: Path, tokenizer: CaptionTokenizer, name: str) -> torch.nn.Module:
    """A LAVIS file with its encoder, a small EVA-CLIP, under timm's names; and the encoder."""
    eva = timm.models.eva.Eva(
        img_size=28, patch_size=14, embed_dim=88, depth=2, num_heads=1, num_classes=0
    ).eval()
    draw_lavis(home, tokenizer, 16, vision_width=88)
    content = torch.load(home / "blip2_pretrained.pth", weights_only=True)
    its = {f"visual_encoder.{n}": v for n, v in eva.state_dict().items() if n[:4] != "norm"}
    torch.save({"model": content["model"] | its}, home / name)
    return eva


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session", "in_place_of_eva")
def test_the_walk_of_the_docs(here, data, bert, draw_blip2, capsys):
    Path("pairs").symlink_to(data / "pairs")
    draw_blip2(Blip2ForImageTextRetrieval, here / "blip2-itm-vit-g")
    opt, speaker = draw_blip2(Blip2ForConditionalGeneration, here / "blip2-opt-2.7b", seed=21)
    opt.language_model.save_pretrained("facebook/opt-2.7b")
    speaker.tokenizer.save_pretrained("facebook/opt-2.7b")
    draw_tuned_lavis(here, bert, "blip2_finetune_coco.pth")
    draw_lavis(here, bert, opt.config.text_config.hidden_size)

    said = {}
    for words in commands():
        capsys.readouterr()
        assert main(words) == 0, words
        said[" ".join(words[:2])] = said[words[0]] = capsys.readouterr().out

    # What became of each tensor
    told = said["import blip2-itm-vit-g"]
    assert re.search(r"left out: vision_model\.\S+ and \d+ more: the frozen vision tower", told)
    assert "not there: the temperature, which starts at 0.07" in told
    assert "not there: the caption head, which starts from chance" in told
    assert Checkpoint.open("stage1").lineage.config["heads"] == {"itg": "untrained"}
    assert "language_model." in said["import blip2-opt-2.7b"]
    told = said["import blip2_pretrained.pth"]
    assert "position_ids: counts from 0" in told
    assert "--encoder timm:eva_giant_patch14_clip_224.laion400m --layer -2 --crop squash" in told
    assert Checkpoint.open("stage1-lavis").encoder.transform["crop_mode"] == "squash"
    assert "temperature" in said["export stage1"]
    assert "rank  score" in said["search index"]
    assert "rank  score" in said["search index-coco"]

    # There and back
    for name in ("stage1", "stage2", "stage1-lavis"):
        same_weights(name, f"{name}-again")
    check_features(Checkpoint.open("stage1-again"), Dataset.open("features", "features"))
    before = load_file("stage1/weights.safetensors")
    theirs = load_file("stage1-transformers/model.safetensors")
    assert torch.equal(before["ln_vision.bias"], theirs["vision_model.post_layernorm.bias"])
    original = load_file("blip2-itm-vit-g/model.safetensors")
    assert theirs.keys() == original.keys()
    assert all(torch.equal(theirs[name], value) for name, value in original.items())
    original = torch.load("blip2_pretrained.pth", weights_only=True)["model"]
    back = torch.load("lavis/model.pth", weights_only=True)["model"]
    assert back.keys() == original.keys()
    assert all(torch.equal(back[name], value) for name, value in original.items())

    # The same caption there as here
    greedy = ["--method", "greedy", "--min-tokens", "0", "--max-tokens", "31"]
    assert main(["caption", "--checkpoint", "stage2", "boat.jpg", *greedy, "--json"]) == 0
    ours = json.loads(capsys.readouterr().out)["captions"][0]["caption"]
    assert ours
    heard = io.StringIO()
    with contextlib.redirect_stdout(heard):
        exec(snippet(), {})
    assert heard.getvalue().strip() == ours


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_an_import_is_trained_on_with_features_of_its_encoder(
    here, data, draw_blip2, rank_here, refused
):
    """Its caption head, which transformers has no place for, is learned without the others."""
    draw_blip2(Blip2ForImageTextRetrieval, here / "blip2")
    assert main(["import", "blip2", "--out", "stage1"]) == 0
    features = ["features", str(data / "pairs"), "--out", "features", "--encoder", "hf:blip2"]
    assert main(features) == 0
    command = [
        *("train-stage1", "--init", "stage1", "--losses", "itg", "--out", "captioner"),
        *("--captions", str(data / "pairs"), "--device", "cpu", "--threads", "1"),
        *("--steps", "2", "--batch-size", "8", "--warmup-steps", "0"),
    ]
    with rank_here():
        assert main([*command, "--features", "features"]) == 0
    before, after = (Checkpoint.open(name) for name in ("stage1", "captioner"))
    assert after.lineage.frozen["init"] == {"digest": before.digest}
    assert after.encoder.weights_digest == before.encoder.weights_digest
    assert after.config == before.config
    for name, value in before.tensors().items():
        heads = ("vision_proj.", "text_proj.", "itm_head.")
        assert torch.equal(value, after.tensors()[name]) or not name.startswith(heads), name
    moved = "qformer.head.dense.weight"
    assert not torch.equal(before.tensors()[moved], after.tensors()[moved])
    line = refused(*command, "--features", data / "features")
    assert "has features of another encoder than" in line


def test_the_end_of_a_caption_is_the_models(here, draw_blip2, capsys):
    """That of transformers' OPT is no end token of its tokenizer."""
    draw_blip2(Blip2ForConditionalGeneration, here / "blip2")
    assert main(["import", "blip2", "--out", "stage2"]) == 0
    made = Checkpoint.open("stage2")
    assert made.config["language_model"]["end_token"] == "boat"
    _, language = load_stage2(made)
    boat = language.tokenizer("boat", add_special_tokens=False)["input_ids"]
    assert [language.end] == boat
    assert language.tokenizer.decode([6, *boat, *boat], skip_special_tokens=True) == "a"


@torch.no_grad()
def test_an_encoder_in_lavis_file_becomes_the_checkpoints(here, bert, capsys):
    """As where it was trained too; names of EVA-CLIP's weights are timm's."""
    eva = draw_tuned_lavis(here, bert, "blip2_coco.pth")
    assert main(["import", "blip2_coco.pth", "--out", "stage1"]) == 0
    assert "visual_encoder" not in capsys.readouterr().out
    checkpoint = Checkpoint.open("stage1")
    assert checkpoint.encoder.name == f"hf:{here}/stage1/vision_tower"
    pictures = torch.randn(2, 3, 28, 28)
    expected = eva.forward_intermediates(
        pictures, norm=False, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
    )[-1]
    expected = torch.cat([expected[1], expected[0]], dim=1)
    found = load_encoder_of(checkpoint)(pictures)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert main(["caption", "--checkpoint", "stage1", "boat.jpg"]) == 0

    # LAVIS's epsilon has no place in transformers: that is said, and it comes back.
    capsys.readouterr()
    assert main(["export", "stage1", "--to", "transformers", "--out", "folder"]) == 0
    line = r"ln_vision: its epsilon is 1e-05 here and 1e-06 there; .* changes its output by \d"
    assert re.search(line, capsys.readouterr().out)
    assert main(["import", "folder", "--out", "again"]) == 0
    same_weights("stage1", "again")
    assert Checkpoint.open("again").config["vision_norm_eps"] == 1e-5

    # Where another is named, it is left out, and that is said.
    options = ("--encoder", "timm:test_vit", "--weights", "random")
    line = "encoder: timm:test_vit is 64 wide; blip2_coco.pth was trained on one 88 wide"
    assert main(["import", "blip2_coco.pth", "--out", "other", *options]) == 2
    assert line in capsys.readouterr().err

    # A folder that has moved is named; one with other weights is refused.
    Path("stage1").rename("moved")
    caption = ["caption", "--checkpoint", "moved", "boat.jpg"]
    assert main(caption) == 2
    assert main([*caption, "--weights", "moved/vision_tower"]) == 0


def test_what_cannot_be_is_one_line(here, draw_blip2, refused):
    draw_blip2(Blip2ForImageTextRetrieval, here / "blip2")
    assert "nowhere: no such folder" in refused("import", "nowhere", "--out", "x")
    line = refused(
        "import", "blip2", "--out", "x", "--encoder", "timm:test_vit", "--weights", "random"
    )
    assert "encoder: timm:test_vit is 64 wide; blip2 was trained on one 16 wide" in line
    assert not Path("x/checkpoint.json").exists()
    assert main(["import", "blip2", "--out", "x"]) == 0
    assert "x: has a checkpoint; name another folder" in refused("import", "blip2", "--out", "x")
    assert "blip2: exists, and is no empty folder" in refused(
        "export", "x", "--to", "lavis", "--out", "blip2"
    )
    assert "a local folder is needed" in refused(
        "export", "x", "--to", "lavis", "--out", "s3://a/b"
    )
    assert load_stage1(Checkpoint.open("x")).temperature.item() == pytest.approx(0.07)
