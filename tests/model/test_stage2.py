"""Stage 2's loss is the language model's own; only the query side trains."""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from model.language_text import CAPTION_PROMPT, IGNORED, language_batch
from model.pretrained.language import LanguageModel
from model.stage2 import Stage2, Stage2Batch, take_over

PROMPT = "a photo of"


@pytest.fixture
def stage2(scattered_stage2):
    return scattered_stage2


def pictures(count: int) -> Tensor:
    return torch.randn(count, 5, 10, generator=torch.Generator().manual_seed(2)).half()


DRAW = [0.1, 0.9, 0.5, 0.7, 0.3, 0.0]
"""Where an encoder-decoder splits each caption."""


def make_batch(language: LanguageModel, texts: list[str], **options) -> Stage2Batch:
    told = {"prompt": "", "max_tokens": 32, "split_draw": DRAW[: len(texts)]} | options
    return Stage2Batch(pictures(len(texts)), *language_batch(language, texts, **told))


# What is learned


@pytest.mark.parametrize("prompt", ["", PROMPT])
def test_the_loss_is_that_of_the_language_models_own_labels(stage2, language, captions, prompt):
    batch = make_batch(language, captions, prompt=prompt)
    assert not batch.present.all()
    with torch.no_grad():
        soft = stage2.soft_prompt(batch.tokens)
        words = language.model.get_input_embeddings()(batch.ids)
        queries = torch.ones(soft.shape[:2], dtype=torch.long)
        unlearned = queries[:, : 0 if language.is_encoder_decoder else None] * -100
        expected = language.model(
            inputs_embeds=torch.cat([soft, words], dim=1),
            attention_mask=torch.cat([queries, batch.present.long()], dim=1),
            labels=torch.cat([unlearned, batch.targets], dim=1),
        ).loss
        found = stage2(batch, language)["loss"]
    torch.testing.assert_close(found, expected)
    assert found > 1


def test_each_token_counts_alike_and_padding_for_nothing(stage2, language, captions):
    whole = make_batch(language, captions)
    total, count = 0.0, 0
    for row, text in enumerate(captions):
        alone = language_batch(
            language, [text], prompt="", max_tokens=32, split_draw=DRAW[row : row + 1]
        )
        tokens = whole.tokens[row : row + 1]
        with torch.no_grad():
            loss = stage2(Stage2Batch(tokens, *alone), language)["loss"]
        learned = int((alone[2] != IGNORED).sum())
        total, count = total + loss.item() * learned, count + learned
    with torch.no_grad():
        assert stage2(whole, language)["loss"].item() == pytest.approx(total / count, rel=1e-4)


def test_what_the_picture_shows_matters(stage2, language, captions):
    batch = make_batch(language, captions)
    other = Stage2Batch(batch.tokens.flip(0), batch.ids, batch.present, batch.targets)
    with torch.no_grad():
        assert stage2(batch, language)["loss"] != stage2(other, language)["loss"]


# What trains


def test_the_query_side_trains_and_the_language_model_stays_as_it_is(stage2, language, captions):
    frozen = {name: value.clone() for name, value in language.model.state_dict().items()}
    before = {name: value.clone() for name, value in stage2.state_dict().items()}
    optimizer = torch.optim.AdamW(stage2.parameters(), lr=0.02)
    batch = make_batch(language, captions)
    stage2.train()
    losses = []
    for _ in range(3):
        loss = stage2(batch, language)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    changed = {name for name, value in stage2.state_dict().items() if (value != before[name]).any()}
    assert changed == set(before)
    after = language.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in frozen.items())
    assert not any(p.requires_grad for p in language.model.parameters())
    assert all(p.grad is None for p in language.model.parameters())


def test_the_language_models_dropout_is_off_even_while_training(stage2, language, captions):
    batch = make_batch(language, captions)
    stage2.train()  # of itself it has none here
    with torch.no_grad():
        assert len({stage2(batch, language)["loss"].item() for _ in range(3)}) == 1
        if language.name != "hf:llama":  # which has none
            language.model.train()
            assert len({stage2(batch, language)["loss"].item() for _ in range(3)}) == 3


def test_the_language_model_is_no_part_of_what_is_stored(stage2):
    names = set(stage2.state_dict())
    parts = {name.split(".")[0] for name in names}
    assert parts == {"ln_vision", "qformer", "projection"}
    assert not any("text" in name or "words" in name or "head" in name for name in names)


def test_it_starts_with_what_stage_1_learned(tiny, scattered_stage1):
    torch.manual_seed(0)
    stage1, stage2 = scattered_stage1(), Stage2(tiny(), 16)
    projection = stage2.projection.weight.clone()
    weights = stage1.state_dict()
    take_over(stage2, weights)
    for name, value in stage2.state_dict().items():
        if not name.startswith("projection"):
            assert torch.equal(value, weights[name]), name
    assert torch.equal(stage2.projection.weight, projection)
    with torch.no_grad():
        outputs, _ = stage1.eval().qformer.see(stage1.image_keys(pictures(3)))
        expected = stage2.projection(outputs)
        torch.testing.assert_close(stage2.eval().soft_prompt(pictures(3)), expected)


def test_the_prompt_is_as_wide_as_the_language_model(tiny):
    soft = Stage2(tiny(num_queries=7), 12).soft_prompt(pictures(2))
    assert soft.shape == (2, 7, 12)
    assert soft.dtype == torch.float32
    assert math.isfinite(soft.sum().item())


@torch.no_grad()
def test_the_loss_is_that_of_transformers(both, family, captions):
    texts = captions[:4]
    ids, present, targets = language_batch(
        both.language, texts, prompt=CAPTION_PROMPT, max_tokens=32, split_draw=[0.2, 0.9, 0.5, 0.0]
    )
    assert not present.all()
    ours = both.ours(Stage2Batch(both.tokens(), ids, present, targets), both.language)["loss"]
    unlearned = targets.new_full((4, both.num_queries if family == "opt" else 0), -100)
    labels = torch.cat([unlearned, targets], dim=1)
    found = both.theirs(
        pixel_values=both.pixels,
        input_ids=both.pictures(ids),
        attention_mask=torch.cat([present.new_ones(4, both.num_queries), present], dim=1).long(),
        labels=labels,
    )
    theirs = found.loss
    if family == "opt":  # rounded to float32, so it is reckoned anew from their scores
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
        theirs = F.cross_entropy(found.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert ours.dtype == theirs.dtype == torch.float64
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-9)
    other = both.ours(Stage2Batch(both.tokens().flip(0), ids, present, targets), both.language)[
        "loss"
    ]
    assert abs(other - theirs) > 1e-3  # pictures matter
