"""LAVIS's checkpoints become ours and ours LAVIS's; each of their tensors is accounted for."""

import pytest
import torch
from torch import Tensor

from model.exchange.foreign_weights import ForeignWeights
from model.exchange.lavis import from_lavis, read_lavis, to_lavis
from model.stage1 import Stage1
from model.stage2 import Stage2
from pipeline.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, VISION, DEEP, QUERIES, EMBED, WORDS, PLACES, LANGUAGE = 64, 10, 80, 4, 6, 41, 24, 12
LAYERS = 3


def linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def norm(name: str, width: int = WIDTH) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def attention(name: str, source: int) -> dict[str, tuple[int, ...]]:
    return {
        **linear(f"{name}.self.query", WIDTH, WIDTH),
        **linear(f"{name}.self.key", WIDTH, source),
        **linear(f"{name}.self.value", WIDTH, source),
        **linear(f"{name}.output.dense", WIDTH, WIDTH),
        **norm(f"{name}.output.LayerNorm"),
    }


def shapes(stage: int, projection: str = "opt_proj") -> dict[str, tuple[int, ...]]:
    """Names and shapes of a LAVIS checkpoint, written out from its modules."""
    shapes = {"query_tokens": (1, QUERIES, WIDTH)} | norm("ln_vision", VISION)
    shapes |= norm("Qformer.bert.embeddings.LayerNorm")
    shapes |= {"Qformer.bert.embeddings.position_ids": (1, PLACES)}
    for n in range(LAYERS):
        layer = f"Qformer.bert.encoder.layer.{n}"
        shapes |= attention(f"{layer}.attention", WIDTH)
        if n % 2 == 0:
            shapes |= attention(f"{layer}.crossattention", VISION)
        for net in ("", "_query") if stage == 1 else ("_query",):
            shapes |= linear(f"{layer}.intermediate{net}.dense", DEEP, WIDTH)
            shapes |= linear(f"{layer}.output{net}.dense", WIDTH, DEEP)
            shapes |= norm(f"{layer}.output{net}.LayerNorm")
    if stage == 2:
        return shapes | linear(projection, LANGUAGE, WIDTH)
    shapes |= {
        "temp": (),
        "Qformer.bert.embeddings.word_embeddings.weight": (WORDS, WIDTH),
        "Qformer.bert.embeddings.position_embeddings.weight": (PLACES, WIDTH),
        "Qformer.cls.predictions.bias": (WORDS,),
    }
    shapes |= linear("Qformer.cls.predictions.transform.dense", WIDTH, WIDTH)
    shapes |= norm("Qformer.cls.predictions.transform.LayerNorm")
    shapes |= linear("Qformer.cls.predictions.decoder", WORDS, WIDTH)
    shapes |= linear("vision_proj", EMBED, WIDTH) | linear("text_proj", EMBED, WIDTH)
    return shapes | linear("itm_head", 2, WIDTH)


def checkpoint(stage: int, projection: str = "opt_proj") -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(stage)
    made = {
        name: torch.randn(shape, generator=generator)
        for name, shape in shapes(stage, projection).items()
    }
    made["Qformer.bert.embeddings.position_ids"] = torch.arange(PLACES)[None]
    if stage == 1:
        predictions = "Qformer.cls.predictions"
        words = made["Qformer.bert.embeddings.word_embeddings.weight"]
        made[f"{predictions}.decoder.weight"] = words
        made[f"{predictions}.decoder.bias"] = made[f"{predictions}.bias"]
    return made


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return set(found) == set(expected) and all(torch.equal(found[n], expected[n]) for n in expected)


@pytest.mark.parametrize(
    ("stage", "projection"), [(1, "opt_proj"), (2, "opt_proj"), (2, "t5_proj")]
)
def test_names_and_values_go_there_and_back(stage, projection):
    theirs = checkpoint(stage, projection)
    weights = from_lavis(theirs, {})
    assert weights.stage == stage
    its = {"max_positions": PLACES, "encoder_decoder": projection == "t5_proj"}
    assert same(to_lavis(weights.tensors, **its), theirs)


def test_stage_1_is_whole_and_its_shape_inferred(tokenizer):
    theirs = checkpoint(1)
    assert len(tokenizer) == WORDS
    weights = from_lavis(theirs, {})
    stage1 = weights.stage1(tokenizer)
    config = stage1.config
    assert (config.vision_width, config.width, config.num_layers) == (VISION, WIDTH, LAYERS)
    assert (config.num_queries, config.embed_dim, config.vocab_size) == (QUERIES, EMBED, WORDS)
    assert (config.feed_forward_width, config.cross_attention_every) == (DEEP, 2)
    assert (config.max_positions, config.max_text_tokens) == (PLACES, PLACES)
    assert config.num_heads == 1  # 64 wide
    assert config.vision_norm_eps == stage1.ln_vision.eps == 1e-5
    assert stage1.temperature.item() == theirs["temp"].item()
    assert torch.equal(stage1.qformer.head.bias, theirs["Qformer.cls.predictions.bias"])
    look = stage1.qformer.layers[2].look
    name = "Qformer.bert.encoder.layer.2.crossattention.self.value.weight"
    assert torch.equal(look.value.weight, theirs[name])
    assert from_lavis(theirs, {"num_heads": 4}).stage1(tokenizer).config.num_heads == 4


def test_stage_2_is_whole():
    theirs = checkpoint(2, "t5_proj")
    stage2 = from_lavis(theirs, {}).stage2()
    assert torch.equal(stage2.projection.weight, theirs["t5_proj.weight"])
    assert stage2.projection.weight.shape == (LANGUAGE, WIDTH)


def test_half_precision_is_taken_as_float32(tokenizer):
    theirs = {name: v.half() if v.ndim else v for name, v in checkpoint(1).items()}
    stage1 = from_lavis(theirs, {}).stage1(tokenizer)
    assert all(value.dtype == torch.float32 for value in stage1.state_dict().values())


def told(weights: ForeignWeights) -> str:
    return "\n".join(weights.told)


def test_what_is_left_out_is_told_with_its_reason():
    theirs = checkpoint(1)
    theirs["visual_encoder.cls_token"] = torch.zeros(1)
    assert told(from_lavis(theirs, {})).splitlines() == [
        "left out: Qformer.bert.embeddings.position_ids: counts from 0",
        "left out: Qformer.cls.predictions.decoder.weight and 1 more: tied to the word embeddings "
        "and the bias",
        "left out: visual_encoder.cls_token: the vision encoder",
    ]
    theirs = checkpoint(2)
    theirs |= {name: value for name, value in checkpoint(1).items() if name not in theirs}
    for name in ("temp", "vision_proj", "text_proj", "itm_head"):
        for kind in ("", ".weight", ".bias"):
            theirs.pop(name + kind, None)
    theirs["opt_model.lm_head.weight"] = torch.zeros(1)
    weights = from_lavis(theirs, {})
    weights.stage2()
    assert "and 24 more: of text; stage 2 reads none" in told(weights)
    assert "opt_model.lm_head.weight: the frozen language model" in told(weights)


@pytest.mark.parametrize(
    ("stage", "change", "message"),
    [
        (1, {"itm_head.bias": None}, "itm_head.bias: missing"),
        (1, {"ln_vision.weight": None}, "ln_vision.weight: missing"),
        (1, {"temp": None}, "temp: missing"),
        (1, {"llm_proj.weight": torch.zeros(2, 2)}, "llm_proj.weight: unexpected"),
        (1, {"text_proj.bias": torch.zeros(3)}, r"text_proj.bias: has shape \(3,\), not \(6,\)"),
        (
            1,
            {"Qformer.cls.predictions.decoder.bias": torch.zeros(WORDS)},
            "decoder.bias: differs from Qformer.cls.predictions.bias",
        ),
        (
            1,
            {"Qformer.bert.encoder.layer.1.crossattention.self.key.weight": torch.zeros(1)},
            r"in layers \[0, 1, 2\]|missing|unexpected",
        ),
        (2, {"query_tokens": torch.zeros(3)}, r"query_tokens: has shape \(3,\)"),
        (2, {"opt_proj.bias": None}, "opt_proj.bias: missing"),
        (2, {"itm_head.bias": torch.zeros(2)}, "itm_head.bias: unexpected in a model of stage 2"),
        *(
            (stage, {name: torch.zeros(1)}, f"^{name}: unexpected")
            for stage in (1, 2)
            for name in (
                "Qformer.cls.predictions.decoder_odd.weight",
                "Qformer.bert.embeddings.position_ids_odd",
                "visual_encoder_odd.x",
                "Qformer.bert.encoder.layer.1.intermediate.odd.weight",
                "Qformer.cls.odd",
            )
        ),
    ],
)
def test_a_weight_that_is_missing_or_unexpected_is_named(tokenizer, stage, change, message):
    theirs = {n: v for n, v in (checkpoint(stage) | change).items() if v is not None}

    def take_in() -> None:
        weights = from_lavis(theirs, {})
        weights.stage1(tokenizer) if stage == 1 else weights.stage2()

    with pytest.raises(ConfigError, match=message):
        take_in()


def test_a_tokenizer_of_another_vocabulary_is_refused(tokenizer):
    theirs = checkpoint(1)
    for name in list(theirs):
        if theirs[name].shape[:1] == (WORDS,):
            theirs[name] = theirs[name][:-1]
    with pytest.raises(ConfigError, match=f"has {WORDS} words with .DEC., but .* has 40 rows"):
        from_lavis(theirs, {}).stage1(tokenizer)


def test_whatever_we_train_has_a_place(tiny, tokenizer):
    """And comes back the same, from a file."""
    for module in (Stage1(tiny(), tokenizer), Stage2(tiny(), 12)):
        theirs = to_lavis(module.state_dict(), max_positions=24)
        back = from_lavis(theirs, {"num_heads": 3}).tensors
        assert same(back, module.state_dict())


def test_files_are_read_and_others_refused(tmp_path):
    file = tmp_path / "blip2.pth"
    torch.save({"model": checkpoint(2), "epoch": 3, "config": {"run": {}}}, file)
    assert same(read_lavis(file), checkpoint(2))
    torch.save(checkpoint(2), file)
    with pytest.raises(ConfigError, match=r"blip2\.pth: holds no tensors under 'model'"):
        read_lavis(file)
    torch.save({"model": torch.nn.Linear(1, 1)}, file)  # would run code
    with pytest.raises(ConfigError, match=r"blip2\.pth: cannot be read"):
        read_lavis(file)
    file.write_bytes(b"PK not at all")
    with pytest.raises(ConfigError, match=r"blip2\.pth: cannot be read"):
        read_lavis(file)
