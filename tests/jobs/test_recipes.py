"""Recipes are complete, are the paper's, and give way to what is said beside them."""

import pytest
import torch
import yaml

from jobs.cli import main, parse
from jobs.recipes import RECIPES
from model.costs import encoder_cost, parameters_of
from model.pretrained.architectures import language_shape
from model.stage1 import Stage1
from model.stage2 import Stage2
from model.start import planned_size

WHERE = {
    "features": ["pairs", "--out", "features"],
    "train-stage1": ["--features", "features", "--captions", "pairs", "--out", "stage1"],
    "capfilt": [
        *("--features", "features", "--pairs", "pairs"),
        *("--captioner", "stage1", "--out", "candidates"),
    ],
    "select-captions": ["candidates", "--out", "captions"],
    "train-stage2": [
        *("--checkpoint", "stage1", "--features", "features"),
        *("--captions", "pairs", "--out", "stage2"),
    ],
}
PAPERS = [name for name in RECIPES if name.startswith("blip2-")]
ENCODER = {
    "vit-l": "timm:vit_large_patch14_clip_224.openai",
    "vit-g": "timm:eva_giant_patch14_clip_224.laion400m",
}
PARAMETERS = {"vit-l": 183_165_758, "vit-g": 186_705_470}
"""Of stage 1, all of them trainable."""
QUERY_SIDE = {"vit-l": 101_625_344, "vit-g": 105_165_056}
"""Of stage 2 without the projection; 1,024 and 1,408 wide they differ as stage 1 does."""
BATCHES = {
    "vit-l": 2320,
    "vit-g": 1680,
    "opt-2.7b": 1920,
    "opt-6.7b": 1920,
    "flant5-xl": 1520,
}
LANGUAGE = {
    "opt-2.7b": ("hf:facebook/opt-2.7b", 2560),
    "opt-6.7b": ("hf:facebook/opt-6.7b", 4096),
    "flant5-xl": ("hf:google/flan-t5-xl", 2048),
}


def job(command: str, *options: str):
    return parse(command, [*WHERE[command], *options])


def test_there_is_one_for_each_pair_of_the_paper():
    assert sorted(PAPERS) == sorted(
        f"blip2-{v}-{language}" for v in ENCODER for language in LANGUAGE
    )


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_settings(name):
    vision = name[len("blip2-") :][:5]
    language = name[len("blip2-vit-x-") :]
    recipe = ("--recipe", name)
    features = job("features", *recipe)
    encoder = features.encoder
    assert (encoder.encoder, encoder.layer, encoder.crop) == (ENCODER[vision], -2, "squash")
    assert (features.cache.dtype, features.views.views, features.views.min_area) == ("fp16", 1, 0.5)
    stage1, stage2 = job("train-stage1", *recipe), job("train-stage2", *recipe)
    assert (stage1.loop.steps, stage1.loop.batch_size) == (250_000, BATCHES[vision])
    assert (stage2.loop.steps, stage2.loop.batch_size) == (80_000, BATCHES[language])
    assert (stage1.optimizer.final_learning_rate, stage2.optimizer.final_learning_rate) == (0, 5e-5)
    for its in (stage1.optimizer, stage2.optimizer):
        assert (its.learning_rate, its.warmup_steps) == (1e-4, 2000)
        assert (its.beta1, its.beta2, its.weight_decay) == (0.9, 0.98, 0.05)
    assert stage1.objectives.itm_hardness(0, 250_000) == 1
    assert stage1.objectives.has_itg(0, 250_000)
    assert (stage1.start.num_queries, stage1.start.embed_dim) == (32, 256)
    assert (stage1.start.dropout, stage1.start.max_text_tokens) == (0.1, 32)
    assert stage2.language.language_model == LANGUAGE[language][0]
    capfilt, selection = job("capfilt", *recipe), job("select-captions", *recipe).selection
    its = capfilt.generation
    assert (its.method, its.num_captions, its.top_p) == ("nucleus", 10, 0.9)
    assert capfilt.judge == ("clip:openai/clip-vit-large-patch14",)
    assert (selection.by, selection.top_k, selection.synthetic_share) == ("itc", 2, None)


@pytest.mark.parametrize("vision", ENCODER)
def test_sizes_on_the_meta_device_are_the_papers(vision):
    for language, (_, width) in LANGUAGE.items():
        recipe = ("--recipe", f"blip2-{vision}-{language}")
        encoder = job("features", *recipe).encoder
        size = planned_size(
            job("train-stage1", *recipe).start, encoder_cost(encoder.encoder, encoder.layer).width
        )
        shape = language_shape(job("train-stage2", *recipe).language.language_model)
        assert shape.hidden_size == width
        with torch.device("meta"):
            assert parameters_of(Stage1(size, tokenizer=None)) == PARAMETERS[vision]
            stage2 = Stage2(size, shape.hidden_size)
        assert parameters_of(stage2) == QUERY_SIDE[vision] + 768 * width + width


@pytest.mark.parametrize("name", ["demo", "demo-full"])
def test_sizes_of_the_demos_on_the_meta_device(name):
    encoder = job("features", "--recipe", name).encoder
    width = encoder_cost(encoder.encoder, encoder.layer).width
    size = planned_size(job("train-stage1", "--recipe", name).start, width)
    assert (width, size.width, size.num_layers, size.num_queries) == (1280, 192, 3, 8)
    with torch.device("meta"):
        assert parameters_of(Stage1(size, tokenizer=None)) == 3_932_179
    stage2 = job("train-stage2", "--recipe", name)
    assert stage2.language.language_model == "offline:smollm2"


@pytest.mark.parametrize(("role", "losses"), [("captioner", {"itg"}), ("judge", {"itc", "itm"})])
def test_the_demos_captioner_and_judge_go_on_from_a_checkpoint(role, losses):
    tuned = job("train-stage1", "--recipe", f"demo-{role}", "--init", "round-1")
    assert tuned.objectives.chosen == losses
    assert tuned.start.init == "round-1"
    assert tuned.loop.steps < job("train-stage1", "--recipe", "demo").loop.steps


def test_the_demo_writes_few_captions_and_the_full_one_of_all_pictures():
    few, all_of_them = (job("capfilt", "--recipe", name) for name in ("demo", "demo-full"))
    assert (few.limit, all_of_them.limit) == (300, None)
    assert (few.generation.method, few.generation.num_captions) == ("nucleus", 2)
    assert (all_of_them.generation.top_p, all_of_them.generation.num_captions) == (0.9, 5)
    selection = job("select-captions", "--recipe", "demo").selection
    assert (selection.top_k, selection.web_threshold, selection.synthetic_threshold) == (
        *(2, 0.25, 0.25),
    )


def test_a_file_overrides_a_recipe_and_options_override_both(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"steps": 7, "dropout": 0.5}))
    both = ("--config", str(file), "--recipe", "demo")
    changed = job("train-stage1", *both, "--dropout", "0.25", "--no-gather-gradient")
    assert changed.loop.steps == 7
    assert changed.start.dropout == 0.25
    assert changed.start.width == 192
    assert not changed.objectives.gather_gradient
    assert job("train-stage1", "--recipe=demo-full").loop.steps == 1500


def test_a_recipe_that_is_none_or_not_for_a_command_is_one_line(refused):
    assert "recipe: 'blip3' is none of blip2-vit-l-opt-2.7b" in refused(
        "train-stage1", "--recipe", "blip3"
    )
    line = refused("index", "embeddings", "--recipe", "demo")
    assert "recipe: demo says nothing of index, but of features, train-stage1" in line
    assert "--recipe: names no recipe" in refused("train-stage1", "--recipe")


def test_help_names_them(capsys):
    with pytest.raises(SystemExit):
        main(["train-stage2", "--help"])
    assert "blip2-vit-g-flant5-xl" in capsys.readouterr().out
