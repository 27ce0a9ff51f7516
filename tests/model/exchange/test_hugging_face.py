"""Weights of transformers under our names compute the same, and each is accounted for."""

import copy

import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from transformers import (
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2Model,
)

from model.exchange.hugging_face import (
    folder_tokenizer,
    from_hugging_face,
    read_config,
    read_hugging_face,
    to_hugging_face,
)
from model.itc import similarity
from model.packing import Texts
from model.qformer import Seen
from pipeline.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["a red boat", "picture number 3", "a boat of a red boat of number 7"]
SIZES = [
    {},
    {"width": 32, "num_heads": 2, "num_layers": 4, "num_queries": 7, "vision_width": 24},
    {"width": 12, "num_heads": 6, "num_layers": 5, "cross_attention_every": 3, "embed_dim": 9},
    {"num_layers": 1, "num_queries": 1, "cross_attention_every": 1},
]


@pytest.fixture
def generation(draw_blip2, tmp_path):
    """A folder of stage 2, its model and its processor."""
    folder = tmp_path / "generation"
    return folder, *draw_blip2(Blip2ForConditionalGeneration, folder)


# Logits


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_stage_1_gives_the_logits_of_transformers(
    draw_blip2, tmp_path, size, dtype, atol, imported, pictures, tokens_of
):
    theirs, processor = draw_blip2(Blip2ForImageTextRetrieval, tmp_path, **size)
    ours = imported(tmp_path).to(dtype)
    theirs.to(dtype)
    batch = processor.tokenizer(TEXTS, padding=True, return_tensors="pt")
    ids, present = batch["input_ids"], batch["attention_mask"].bool()
    own_ids, own_present = ours.tokenizer.encode(TEXTS, 24)
    assert torch.equal(own_ids, ids)
    assert torch.equal(own_present, present)

    # They cut off as many ids as there are queries: a processor puts <image> there.
    queries = torch.full((len(TEXTS), theirs.config.num_query_tokens), theirs.config.image_token_id)
    values = pictures.to(dtype)
    expected = {
        itm: theirs(
            pixel_values=values,
            input_ids=torch.cat([queries, ids], dim=1),
            attention_mask=torch.cat([torch.ones_like(queries), present.long()], dim=1),
            use_image_text_matching_head=itm,
        ).logits_per_image
        for itm in (False, True)
    }
    image = ours.image_keys(tokens_of(theirs, values))
    outputs, _ = ours.qformer.see(image)
    embedded = F.normalize(ours.vision_proj(outputs), dim=-1)
    texts = Texts.packed(ids, present)
    words = F.normalize(ours.text_proj(ours.qformer.read(texts)[texts.first]), dim=-1)
    for found, it in (
        (similarity(embedded, words), expected[False]),
        (ours.match_logits([Seen(image)], texts), expected[True]),
    ):
        assert it.std() > 0.01
        torch.testing.assert_close(found, it, rtol=0, atol=atol)


@torch.no_grad()
@pytest.mark.parametrize("kind", [Blip2ForConditionalGeneration, Blip2Model])
def test_stage_2_gives_the_language_model_what_transformers_gives_it(
    draw_blip2, tmp_path, kind, imported, pictures, tokens_of
):
    theirs, _ = draw_blip2(kind, tmp_path)
    ours = imported(tmp_path)
    outputs = theirs.get_qformer_features(pictures) if kind is Blip2Model else None
    expected = (
        theirs.get_image_features(pictures).pooler_output
        if outputs is None
        else theirs.language_projection(outputs)
    )
    assert expected.std() > 0.01
    found = ours.soft_prompt(tokens_of(theirs, pictures))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


# Accounts


def test_what_transformers_has_no_place_for_starts_as_from_scratch(retrieval):
    theirs, others = read_hugging_face(retrieval[0])
    weights = from_hugging_face(theirs, read_config(retrieval[0]), {})
    assert weights.lacking == ("temperature", "qformer.head.")
    stage1 = weights.stage1(folder_tokenizer(retrieval[0]))
    assert stage1.temperature.item() == pytest.approx(0.07)
    assert stage1.qformer.head.bias.abs().max() == 0
    again = weights.stage1(folder_tokenizer(retrieval[0]))
    assert torch.equal(stage1.qformer.head.dense.weight, again.qformer.head.dense.weight)
    assert set(theirs) | set(others) == set(retrieval[1].state_dict())
    assert weights.left_out == {}


def test_names_and_values_go_there_and_back(retrieval, imported):
    theirs, _ = read_hugging_face(retrieval[0])
    stage1 = imported(retrieval[0])
    back, rest = to_hugging_face(stage1.state_dict())
    assert set(back) == set(theirs)
    assert all(torch.equal(back[name], value) for name, value in theirs.items())
    assert {name.split(".")[0] for name in rest} == {"temperature", "qformer"}
    assert all(name == "temperature" or name.startswith("qformer.head.") for name in rest)


def test_text_parts_of_stage_2_are_left_out_with_a_reason(generation):
    theirs, _ = read_hugging_face(generation[0])
    theirs |= {
        f"qformer.encoder.layer.{n}.{part}.dense.{kind}": torch.zeros(1)
        for n in range(3)
        for part in ("intermediate", "output")
        for kind in ("weight", "bias")
    }
    weights = from_hugging_face(theirs, read_config(generation[0]), {})
    weights.stage2()
    ((why, names),) = weights.left_out.items()
    assert why == "of text; stage 2 reads none"
    assert len(names) == 12
    assert weights.told == [f"left out: {names[0]} and 11 more: {why}"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("itm_head.bias"), "itm_head.bias: missing"),
        (lambda t: t.pop("query_tokens"), "query_tokens: missing"),
        (lambda t: t.update(odd=torch.zeros(1)), "odd: unexpected"),
        (
            lambda t: t.update({"language_projection.bias": torch.zeros(1)}),
            "language_projection.bias: unexpected in a model of stage 1",
        ),
        (
            lambda t: t.update({"text_projection.weight": torch.zeros(6, 7)}),
            r"text_projection.weight: has shape \(6, 7\), not \(6, 24\)",
        ),
        (
            lambda t: [t.pop(name) for name in list(t) if "layer.2.crossattention" in name],
            "qformer.encoder.layer.2.crossattention.attention.query.weight: missing",
        ),
        (
            lambda t: t.pop("qformer.encoder.layer.1.output.LayerNorm.weight"),
            "qformer.encoder.layer.1.output.LayerNorm.weight: missing",
        ),
    ],
)
def test_a_weight_that_is_missing_or_unexpected_is_named(retrieval, change, message):
    theirs, _ = read_hugging_face(retrieval[0])
    change(theirs)
    with pytest.raises(ConfigError, match=message):
        from_hugging_face(theirs, read_config(retrieval[0]), {}).stage1(
            folder_tokenizer(retrieval[0])
        )


@pytest.mark.parametrize(
    "name",
    [
        "qformer.encoder.layer.1.intermediate.odd.weight",
        "qformer.encoder.layer.1.output.dense.weight_odd",
        "qformer.embeddings.position_ids",
        "embeddings.position_ids_odd",
    ],
)
def test_only_what_stage_2_has_no_use_for_is_left_out(generation, name):
    theirs, _ = read_hugging_face(generation[0])
    with pytest.raises(ConfigError, match=f"^{name}: unexpected"):
        from_hugging_face(theirs | {name: torch.zeros(1)}, read_config(generation[0]), {})


def test_folders_of_other_models_are_refused(tmp_path, generation, draw_blip2):
    with pytest.raises(ConfigError, match="is no folder of transformers"):
        read_config(tmp_path)
    generation[1].language_model.save_pretrained(tmp_path / "opt")
    with pytest.raises(ConfigError, match="is a OPTForCausalLM; one of Blip2ForImageTextRetrieval"):
        read_config(tmp_path / "opt")
    model = copy.deepcopy(generation[1])
    model.config.qformer_config.hidden_act = "relu"
    model.save_pretrained(tmp_path / "relu")
    with pytest.raises(ConfigError, match=r"qformer_config\.hidden_act is 'relu', not gelu"):
        read_config(tmp_path / "relu")
