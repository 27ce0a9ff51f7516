"""Stage 2's loss is the language model's own; only the query side trains; captions end."""

import math

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
)

from model.language import LanguageModel
from model.stage2 import IGNORED, Stage2, Stage2Batch, language_batch, take_over
from pipeline.errors import ConfigError

L = 16
PROMPT = "a photo of"


def make_tokenizer(captions: list[str], *, begins: bool) -> PreTrainedTokenizerFast:
    """A byte-level one, learned from the captions; as OPT's it may begin each text with </s>."""
    learner = ByteLevelBPETokenizer()
    learner.train_from_iterator(
        captions, vocab_size=300, special_tokens=["</s>"], show_progress=False
    )
    backend = learner._tokenizer
    if begins:
        end = ("</s>", backend.token_to_id("</s>"))
        backend.post_processor = TemplateProcessing(single="</s> $A", special_tokens=[end])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", bos_token="</s>")


def make_language(family: str, tokenizer: PreTrainedTokenizerFast) -> LanguageModel:
    """A small one whose weights are large enough for every part to matter."""
    size = {"vocab_size": len(tokenizer), "hidden_size": L, "num_hidden_layers": 2}
    size |= {"num_attention_heads": 2, "max_position_embeddings": 64}
    torch.manual_seed(0)
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**size, intermediate_size=24, num_key_value_heads=1))
    else:  # its positions come from the mask, and it has dropout
        model = OPTForCausalLM(OPTConfig(**size, ffn_dim=24, word_embed_proj_dim=L, dropout=0.5))
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.4)
    return LanguageModel(f"hf:{family}", model.train(), tokenizer)


@pytest.fixture
def plain(captions):
    """Ends captions with </s>, and begins them with nothing."""
    return make_tokenizer(captions, begins=False)


@pytest.fixture(params=["llama", "opt"])
def language(request, captions, plain):
    return make_language(request.param, plain)


@pytest.fixture
def opt(captions):
    """With a tokenizer as OPT's: one token is both the beginning and the end."""
    return make_language("opt", make_tokenizer(captions, begins=True))


@pytest.fixture
def stage2(tiny):
    torch.manual_seed(1)
    module = Stage2(tiny(), L)
    for weights in module.parameters():
        torch.nn.init.normal_(weights, std=0.5)
    torch.nn.init.normal_(module.projection.weight, std=3.0)  # so that pictures matter
    return module.eval()


def pictures(count: int) -> Tensor:
    return torch.randn(count, 5, 10, generator=torch.Generator().manual_seed(2)).half()


def make_batch(language: LanguageModel, texts: list[str], **options) -> Stage2Batch:
    told = {"prompt": "", "max_tokens": 32} | options
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
        expected = language.model(
            inputs_embeds=torch.cat([soft, words], dim=1),
            attention_mask=torch.cat([queries, batch.present.long()], dim=1),
            labels=torch.cat([queries * -100, batch.targets], dim=1),
        ).loss
        found = stage2(batch, language)["loss"]
    torch.testing.assert_close(found, expected)
    assert found > 1


def test_each_token_counts_alike_and_padding_for_nothing(stage2, language, captions):
    whole = make_batch(language, captions)
    total, count = 0.0, 0
    for row, text in enumerate(captions):
        alone = language_batch(language, [text], prompt="", max_tokens=32)
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


@pytest.mark.parametrize("prompt", ["", PROMPT, PROMPT + " "])
def test_ids_are_those_of_prompt_and_caption_and_then_the_end(plain, language, captions, prompt):
    ids, present, targets = language_batch(language, captions, prompt=prompt, max_tokens=64)
    num_prompt = len(plain(prompt)["input_ids"])
    for row, text in enumerate(captions):
        length = int(present[row].sum())
        assert present[row, :length].all()
        shown = ids[row, :length].tolist()
        assert shown[-1] == language.end
        joined = f"{prompt.rstrip()} {text}" if prompt else text
        assert plain.decode(shown[:-1]) == joined
        if not prompt.endswith(" "):
            assert shown[:-1] == plain(joined)["input_ids"]
        assert targets[row, num_prompt:length].tolist() == shown[num_prompt:]
        assert (targets[row, :num_prompt] == IGNORED).all()
        assert (targets[row, length:] == IGNORED).all()


def test_a_caption_that_is_cut_is_not_learned_to_end_there(plain, language, captions):
    text = captions[3]
    ids = plain(text)["input_ids"]
    fits, cut = (
        language_batch(language, [text, "a man"], prompt="", max_tokens=len(ids) + more)
        for more in (1, 0)
    )
    assert fits[0][0].tolist() == [*ids, language.end]
    assert fits[2][0].tolist() == [*ids, language.end]
    assert cut[0][0].tolist() == [*ids[:-1], language.end]
    assert cut[2][0].tolist() == [*ids[:-1], IGNORED]
    for _, present, targets in (fits, cut):  # the short one ends as ever
        assert targets[1, int(present[1].sum()) - 1] == language.end


@pytest.mark.parametrize("max_tokens", [4, 7, 12])
def test_no_row_is_longer_than_it_may_be(language, captions, max_tokens):
    ids, _, _ = language_batch(language, captions, prompt="a", max_tokens=max_tokens)
    assert ids.shape[1] <= max_tokens


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_a_prompt_that_leaves_no_room_for_a_caption_is_refused(plain, language, captions, more):
    length = len(plain(PROMPT)["input_ids"])
    with pytest.raises(ConfigError, match="max_language_tokens"):
        language_batch(language, captions, prompt=PROMPT, max_tokens=length + more)


@pytest.mark.parametrize("prompt", ["", PROMPT])
def test_what_a_tokenizer_puts_before_every_text_is_not_learned(opt, plain, captions, prompt):
    """OPT's puts its end token there: who learned to say it would end every caption at once."""
    ids, present, targets = language_batch(opt, captions, prompt=prompt, max_tokens=64)
    num_prompt = 1 + len(plain(prompt)["input_ids"])
    assert ids[:, :num_prompt].tolist() == [opt.tokenizer(prompt)["input_ids"]] * len(captions)
    assert (targets[:, :num_prompt] == IGNORED).all()
    for row, text in enumerate(captions):
        words = ids[row, num_prompt : int(present[row].sum())].tolist()
        assert words == [*plain(f" {text}" if prompt else text)["input_ids"], opt.end]
        assert targets[row, num_prompt:][present[row, num_prompt:]].tolist() == words


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


def test_the_language_models_dropout_is_off_even_while_training(stage2, captions, plain):
    opt = make_language("opt", plain)
    assert opt.model.config.dropout == 0.5
    batch = make_batch(opt, captions)
    stage2.train()  # of itself it has none here
    with torch.no_grad():
        assert len({stage2(batch, opt)["loss"].item() for _ in range(3)}) == 1


def test_the_language_model_is_no_part_of_what_is_stored(stage2):
    names = set(stage2.state_dict())
    parts = {name.split(".")[0] for name in names}
    assert parts == {"ln_vision", "qformer", "projection"}
    assert not any("text" in name or "words" in name or "head" in name for name in names)


def test_it_starts_with_what_stage_1_learned(tiny, scattered_stage1):
    torch.manual_seed(0)
    stage1, stage2 = scattered_stage1(), Stage2(tiny(), L)
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


# Captions


@torch.no_grad()
def greedy(stage2: Stage2, language: LanguageModel, token: Tensor, prompt: str, at_most: int):
    """Ids after the prompt, the most probable each time, all computed anew; ends with the end."""
    embed = language.model.get_input_embeddings()
    start = stage2.soft_prompt(token[None])
    ids = language.tokenizer(prompt)["input_ids"]
    first = len(ids)
    while len(ids) - first < at_most:
        words = embed(torch.tensor([ids], dtype=torch.long))
        logits = language.model(inputs_embeds=torch.cat([start, words], dim=1)).logits
        ids.append(int(logits[0, -1].argmax()))
        if ids[-1] == language.end:
            break
    return ids[first:]


@pytest.mark.parametrize("prompt", ["", PROMPT])
def test_captions_are_the_most_probable_tokens(stage2, language, prompt):
    tokens = pictures(4)
    expected = [greedy(stage2, language, token, prompt, 8) for token in tokens]
    told = [language.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in expected]
    assert len(set(told)) > 1
    found = stage2.caption(tokens, language, prompt=prompt, max_new_tokens=8)
    assert found == told
    one = [
        stage2.caption(token[None], language, prompt=prompt, max_new_tokens=8)[0]
        for token in tokens
    ]
    assert one == told


def exchange(language: LanguageModel, one: int, other: int) -> None:
    """From now on the model says either word where it said the other."""
    model = language.model
    tables = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    with torch.no_grad():
        for table in {id(table): table for table in tables}.values():  # they may be one
            table[[one, other]] = table[[other, one]]


def test_a_caption_stops_at_the_end_token(stage2, language):
    tokens = pictures(4)
    unended = greedy(stage2, language, tokens[0], "", 10)
    exchange(language, language.end, next(word for word in unended if word != unended[0]))
    expected = [greedy(stage2, language, token, "", 10) for token in tokens]
    assert 1 < len(expected[0]) < 10
    assert expected[0][-1] == language.end
    assert len({len(ids) for ids in expected}) > 1
    told = [language.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in expected]
    assert stage2.caption(tokens, language, max_new_tokens=10) == told


def test_a_caption_begins_after_what_stands_before_every_text(stage2, opt):
    """That is the end token here, which the model must not be asked for first."""
    tokens = pictures(4)
    expected = [greedy(stage2, opt, token, "", 6) for token in tokens]
    told = [opt.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in expected]
    assert stage2.caption(tokens, opt, max_new_tokens=6) == told
