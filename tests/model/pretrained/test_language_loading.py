"""Language models are loaded whole, with a tokenizer that ends texts; else one clear line."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from model.pretrained.language_loading import load_language_model
from pipeline.errors import ConfigError

WORDS = ["<unk>", "</s>", "a", "red", "boat"]


def save_tokenizer(folder: Path, *, end: str | None = "</s>") -> None:
    backend = Tokenizer(WordLevel({word: n for n, word in enumerate(WORDS)}, "<unk>"))
    backend.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=end, unk_token="<unk>"
    ).save_pretrained(folder)


def save_opt(folder: Path, *, end: str | None = "</s>", tied: bool = True) -> Path:
    """Two layers, 16 wide, as a hub has it, in half precision."""
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        ffn_dim=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=20,
        word_embed_proj_dim=12,
        dropout=0.5,
        tie_word_embeddings=tied,
    )
    OPTForCausalLM(config).half().save_pretrained(folder)
    save_tokenizer(folder, end=end)
    return folder


@pytest.fixture
def opt(tmp_path):
    return save_opt(tmp_path / "opt")


def told(name: object) -> str:
    """The error of loading a model, which must be one line."""
    with pytest.raises(ConfigError) as error:
        load_language_model(f"hf:{name}")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_is_loaded_frozen_in_eval_mode_and_float32(opt):
    language = load_language_model(f"hf:{opt}")
    assert language.name == f"hf:{opt}"
    assert not language.model.training
    for name, weights in language.model.named_parameters():
        assert not weights.requires_grad
        assert weights.dtype == torch.float32, name
    stored = load_file(opt / "model.safetensors")["model.decoder.embed_tokens.weight"]
    assert torch.equal(language.model.get_input_embeddings().weight, stored.float())


def test_width_is_that_of_the_words_and_end_the_tokenizers(opt):
    language = load_language_model(f"hf:{opt}")
    assert language.width == 12  # its hidden states are 16 wide
    assert language.end == 1
    assert language.tokenizer("a red boat")["input_ids"] == [2, 3, 4]


def test_a_home_folder_is_found(opt, monkeypatch):
    monkeypatch.setenv("HOME", str(opt.parent))
    assert load_language_model("hf:~/opt").width == 12


def test_a_folder_that_is_not_there_is_named(tmp_path):
    assert f"language_model: hf:{tmp_path}/none cannot be had" in told(tmp_path / "none")


def test_a_folder_without_a_model_is_named(tmp_path, opt):
    (tmp_path / "empty").mkdir()
    assert f"language_model: hf:{tmp_path}/empty cannot be had" in told(tmp_path / "empty")
    (opt / "model.safetensors").unlink()
    assert f"language_model: hf:{opt} cannot be had" in told(opt)


def test_damaged_weights_are_named(opt):
    file = opt / "model.safetensors"
    file.write_bytes(file.read_bytes()[:200])
    assert f"language_model: hf:{opt} cannot be had" in told(opt)


def save_t5(folder: Path, *, start: int | None = 0, tied: bool = True) -> Path:
    size = {"vocab_size": 8, "d_model": 12, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    config = T5Config(**size, decoder_start_token_id=start, tie_word_embeddings=tied)
    model = T5ForConditionalGeneration(config)
    if not tied:  # transformers ties all T5s, but leaves a head alone that is another's
        model.lm_head.weight = torch.nn.Parameter(torch.randn(8, 12))
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("save", [save_opt, save_t5])
def test_words_and_head_may_be_tied(tmp_path, save, tied):
    folder = save(tmp_path / "model", tied=tied)
    stored = load_file(folder / "model.safetensors")
    assert ("lm_head.weight" in stored) != tied
    model = load_language_model(f"hf:{folder}").model
    assert torch.equal(model.lm_head.weight, model.get_input_embeddings().weight) == tied
    own = model.state_dict()
    assert all(torch.equal(own[name], value.float()) for name, value in stored.items())


HEAD = "lm_head.weight"
INNER = {
    "opt": "model.decoder.layers.1.fc1.weight",
    "t5": "decoder.block.0.layer.1.EncDecAttention.k.weight",
}
WORD_ROWS = {"opt": "model.decoder.embed_tokens.weight", "t5": "shared.weight"}


def edit(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    """Put other tensors into a folder's weights, or take some out."""
    file = folder / "model.safetensors"
    stored = {**load_file(file), **change}
    kept = {name: value for name, value in stored.items() if value is not None}
    save_file(kept, file, metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["opt", "t5"])
def test_a_weight_that_is_missing_or_unexpected_is_named(tmp_path, name):
    """Of a folder of its own, tied or not."""
    save = {"opt": save_opt, "t5": save_t5}[name]
    inner, rows = INNER[name], WORD_ROWS[name]
    changes: list[tuple[bool, dict[str, torch.Tensor | None], str]] = [
        (True, {inner: None}, f"{inner}: missing"),
        (False, {inner: None}, f"{inner}: missing"),
        (True, {rows: None}, "weight: missing"),  # one of those that are tied to it
        (True, {"odd.weight": torch.zeros(1)}, "odd.weight: unexpected"),
        (True, {inner: torch.zeros(2, 3)}, rf"{inner}: has shape (2, 3), not (8, "),
    ]
    if name == "opt":  # a T5 without a head is one that is tied
        changes.append((False, {HEAD: None}, f"{HEAD}: missing"))
    for number, (tied, change, message) in enumerate(changes):
        folder = save(tmp_path / str(number), tied=tied)
        edit(folder, change)
        line = told(folder)
        assert line.startswith(f"language_model: hf:{folder}: ")
        assert message in line


def test_a_missing_weight_is_one_line_and_no_table_before_it(opt, caplog, capfd):
    inner = INNER["opt"]
    edit(opt, {inner: None})
    assert told(opt) == f"language_model: hf:{opt}: {inner}: missing"
    assert caplog.text == ""
    assert "REPORT" not in capfd.readouterr().err
    OPTForCausalLM.from_pretrained(opt)  # which goes on to tell others
    assert "LOAD REPORT" in caplog.text


@pytest.mark.parametrize("name", ["opt", "t5"])
def test_of_a_blip_2_the_weights_of_its_language_model_count(tmp_path, draw_blip2, name):
    """What else lies in its folder is read, and missed, elsewhere."""
    folder, inner = tmp_path / "blip2", f"language_model.{INNER[name]}"
    draw_blip2(Blip2ForConditionalGeneration, folder, family=name)
    rest = ("query_tokens", "vision_model.post_layernorm.bias")
    edit(folder, dict.fromkeys(rest) | {"odd.weight": torch.zeros(1)})
    whole = load_language_model(f"hf:{folder}").model.state_dict()
    stored = load_file(folder / "model.safetensors")
    assert torch.equal(whole[INNER[name]], stored[inner])
    for change, message in (
        ({inner: None}, f"{inner}: missing"),
        ({inner: stored[inner], "language_model.odd": torch.zeros(1)}, "odd: unexpected"),
        ({"language_model.odd": None, inner: torch.zeros(1)}, f"{inner}: has shape (1,), not ("),
    ):
        edit(folder, change)
        assert f"language_model: hf:{folder}: " in told(folder)
        assert message in told(folder)


@torch.no_grad()
def test_the_language_model_of_a_blip_2_is_loaded_from_its_folder(draw_blip2, tmp_path):
    blip2, _ = draw_blip2(Blip2ForConditionalGeneration, tmp_path)
    language = load_language_model(f"hf:{tmp_path}")
    theirs = blip2.language_model
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(language.model(ids).logits, theirs(ids).logits)
    assert language.tokenizer("a red boat")["input_ids"] == [5, 6, 7, 8]


def test_a_blip_2_without_a_language_model_has_none(tmp_path, draw_blip2):
    draw_blip2(Blip2ForImageTextRetrieval, tmp_path)
    assert "lm_head.weight: missing" in told(tmp_path)


def test_an_encoder_decoder_is_one(tmp_path, opt):
    t5 = load_language_model(f"hf:{save_t5(tmp_path / 't5')}")
    assert t5.is_encoder_decoder
    assert not t5.model.training
    assert (t5.width, t5.end, t5.max_positions) == (12, 1, None)
    decoder = load_language_model(f"hf:{opt}")
    assert not decoder.is_encoder_decoder
    assert decoder.max_positions == 20


def test_a_decoder_that_does_not_know_its_start_is_refused(tmp_path):
    startless = save_t5(tmp_path / "t5", start=None)
    assert "t5: its config has no decoder_start_token_id" in told(startless)


def test_what_a_model_says_of_writing_is_left_aside(opt):
    (opt / "generation_config.json").write_text(json.dumps({"temperature": 7.0, "do_sample": True}))
    language = load_language_model(f"hf:{opt}")
    assert not language.model.generation_config.do_sample
    assert language.model.generation_config.temperature is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("save", [save_opt, save_t5])
def test_scores_on_a_gpu_are_those_of_the_cpu(tmp_path, save):
    language = load_language_model(f"hf:{save(tmp_path / 'model')}")
    soft = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[2, 3, 4], [4, 2, 1]])
    inputs = (soft, ids, torch.ones_like(ids, dtype=torch.bool), ids)
    expected = language.scores(*inputs)
    language.to("cuda")
    assert {weights.dtype for weights in language.model.parameters()} <= {
        torch.bfloat16,
        *([] if language.is_encoder_decoder else [torch.float16]),
    }
    on_gpu = [value.cuda() for value in inputs]
    plain = language.scores(*on_gpu).float().cpu()
    with torch.autocast("cuda", torch.bfloat16):  # as the trainer has it
        cast = language.scores(*on_gpu).float().cpu()
    torch.testing.assert_close(plain, expected, rtol=0.05, atol=0.05)
    torch.testing.assert_close(cast, expected, rtol=0.05, atol=0.05)


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
    endless = save_opt(tmp_path / "endless", end=None)
    assert f"language_model: hf:{endless}: its tokenizer has no end token" in told(endless)


def test_a_model_without_its_tokenizer_is_refused(opt):
    for file in opt.glob("*token*"):
        file.unlink()
    assert f"language_model: hf:{opt}" in told(opt)


def test_a_model_of_an_unknown_kind_is_refused(opt):
    config = json.loads((opt / "config.json").read_text())
    (opt / "config.json").write_text(json.dumps(config | {"model_type": "abacus"}))
    assert f"language_model: hf:{opt} cannot be had" in told(opt)


@pytest.mark.parametrize("name", ["opt", "hf:", "offline:smollm3", "timm:opt", ""])
def test_names_of_no_kind_are_refused(name):
    with pytest.raises(ConfigError, match=f"language_model: '{name}' is neither hf:NAME_OR"):
        load_language_model(name)
