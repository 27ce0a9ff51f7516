"""Stage 2's texts: the search that was asked for, on prompts as they were learned, to the end."""

import math
from collections import Counter

import pytest
import torch
import transformers
from torch import Tensor

from model.generation.settings import GenerationConfig
from model.generation.stage2 import write_texts
from model.language_text import CAPTION_PROMPT, prompt_ids
from model.pretrained.language import LanguageModel
from model.stage2 import Stage2
from pipeline.errors import ConfigError

PROMPT = "a photo of"
QUERIES = 4


@pytest.fixture
def stage2(scattered_stage2):
    return scattered_stage2


def pictures(count: int) -> Tensor:
    return torch.randn(count, 5, 10, generator=torch.Generator().manual_seed(2)).half()


def settings(method: str, shortest: int, longest: int, **changes) -> GenerationConfig:
    """Lengths here are of what is written, with the end; there one token more stands before it."""
    lengths = {"min_tokens": shortest + 1, "max_tokens": longest + 1}
    return GenerationConfig(method=method, **lengths, **changes)


def first_texts(
    stage2, language, tokens, prompt="", *, shortest=0, longest=8, **changes
) -> list[str]:
    config = settings("greedy", shortest, longest, **changes)
    texts = write_texts(stage2, language, tokens, prompt, config)
    assert all(len(its) == 1 for its in texts)
    return [its[0] for its in texts]


@torch.no_grad()
def next_scores(stage2: Stage2, language: LanguageModel, token: Tensor, prompt: str, written):
    """Scores of what comes after the prompt and what was written; all computed anew."""
    embed = language.model.get_input_embeddings()
    soft = stage2.soft_prompt(token[None])
    ids = prompt_ids(language, prompt)
    if language.is_encoder_decoder:
        words = embed(torch.tensor([ids], dtype=torch.long))
        start = language.model.config.decoder_start_token_id
        logits = language.model(
            inputs_embeds=torch.cat([soft, words], dim=1),
            decoder_input_ids=torch.tensor([[start, *written]]),
        ).logits
    else:
        words = embed(torch.tensor([[*ids, *written]], dtype=torch.long))
        logits = language.model(inputs_embeds=torch.cat([soft, words], dim=1)).logits
    return logits[0, -1]


def greedy(stage2, language, token, prompt, at_most, *, at_least=0, penalty=1.0) -> list[int]:
    """The most probable token each time; ends with the end."""
    written: list[int] = []
    while len(written) < at_most and language.end not in written:
        scores = next_scores(stage2, language, token, prompt, written)
        for word in set(written):
            scores[word] *= penalty if scores[word] < 0 else 1 / penalty
        if len(written) < at_least:
            scores[language.end] = -math.inf
        written.append(int(scores.argmax()))
    return written


def text_of(language: LanguageModel, ids: list[int]) -> str:
    words = ids[:-1] if ids[-1] == language.end else ids
    return language.tokenizer.decode(words, skip_special_tokens=True).strip()


def end_with(language: LanguageModel, word: int) -> None:
    """From now on this is the end token."""
    language.tokenizer.eos_token = language.tokenizer.convert_ids_to_tokens(word)
    assert language.end == word


# Greedy


@pytest.mark.parametrize("prompt", ["", PROMPT])
def test_captions_are_the_most_probable_tokens(stage2, language, prompt):
    tokens = pictures(4)
    expected = [text_of(language, greedy(stage2, language, t, prompt, 8)) for t in tokens]
    assert len(set(expected)) > 1
    assert first_texts(stage2, language, tokens, prompt) == expected
    one = [first_texts(stage2, language, token[None], prompt)[0] for token in tokens]
    assert one == expected
    assert first_texts(stage2, language, tokens[:0], prompt) == []


def test_a_caption_stops_at_the_end_token(stage2, language):
    tokens = pictures(4)
    unended = [greedy(stage2, language, token, "", 10) for token in tokens]
    later = next(word for ids in unended for word in ids if word != ids[0])
    end_with(language, later)
    expected = [greedy(stage2, language, token, "", 10) for token in tokens]
    lengths = {len(ids) for ids in expected if ids[-1] == language.end}
    assert any(1 < length < 10 for length in lengths)
    told = [text_of(language, ids) for ids in expected]
    assert first_texts(stage2, language, tokens, longest=10) == told


def test_a_caption_begins_after_what_stands_before_every_text(
    stage2, make_language, byte_tokenizer
):
    """That is the end token here, which the model must not be asked for first."""
    opt = make_language("opt", byte_tokenizer("</s> $A"))
    tokens = pictures(4)
    expected = [text_of(opt, greedy(stage2, opt, token, "", 6)) for token in tokens]
    assert first_texts(stage2, opt, tokens, longest=6) == expected


def test_no_caption_is_shorter_than_it_may_be(stage2, language):
    tokens = pictures(4)
    unended = greedy(stage2, language, tokens[0], "", 10)
    end_with(language, unended[0])
    assert greedy(stage2, language, tokens[0], "", 10) == [language.end]
    expected = [greedy(stage2, language, t, "", 10, at_least=5) for t in tokens]
    assert all(len(ids) > 5 for ids in expected)
    told = [text_of(language, ids) for ids in expected]
    assert first_texts(stage2, language, tokens, shortest=5, longest=10) == told


def test_what_was_written_is_penalised(stage2, language):
    tokens = pictures(4)
    plain = [greedy(stage2, language, token, PROMPT, 12) for token in tokens]
    assert any(len(set(ids)) < len(ids) for ids in plain)
    found = first_texts(stage2, language, tokens, PROMPT, longest=12, repetition_penalty=1.5)
    expected = [greedy(stage2, language, t, PROMPT, 12, penalty=1.5) for t in tokens]
    assert expected != plain
    assert found == [text_of(language, ids) for ids in expected]


# Beam


def all_texts(stage2, language, token, length: int) -> list[tuple[float, list[int]]]:
    """Every text of `length` tokens, or less with an end, of the 40 best words a step."""
    open_texts: list[tuple[float, list[int]]] = [(0.0, [])]
    done = []
    for _ in range(length):
        following = []
        for score, ids in open_texts:
            best = next_scores(stage2, language, token, "", ids).log_softmax(dim=0).topk(40)
            for more, word in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                grown = (score + more, [*ids, word])
                (done if word == language.end else following).append(grown)
        open_texts = following
    return sorted(done + open_texts, reverse=True)


def test_a_wide_beam_finds_the_most_probable_texts_best_first(stage2, language):
    """Of two tokens: with a beam as wide as there are first tokens nothing is left out."""
    token = pictures(1)
    best = [ids for _, ids in all_texts(stage2, language, token[0], 2) if language.end not in ids]
    config = settings("beam", 2, 2, num_beams=40, num_captions=3)
    (found,) = write_texts(stage2, language, token, "", config)
    assert found == [text_of(language, ids) for ids in best[:3]]


def test_a_beam_of_one_is_greedy(stage2, language):
    tokens = pictures(3)
    config = settings("beam", 0, 8, num_beams=1)
    found = write_texts(stage2, language, tokens, "", config)
    assert [its[0] for its in found] == first_texts(stage2, language, tokens)


# Nucleus


def draw(stage2, language, seed: int, *, longest=6, num_captions=4, top_p=0.9) -> list[list[str]]:
    generator = torch.Generator().manual_seed(seed)
    config = settings("nucleus", 0, longest, num_captions=num_captions, top_p=top_p)
    return write_texts(stage2, language, pictures(2), PROMPT, config, generator)


def test_the_seed_decides_what_is_drawn_and_neighbours_do_not(stage2, language):
    first = draw(stage2, language, 0)
    assert [len(its) for its in first] == [4, 4]
    assert len({text for its in first for text in its}) > 2
    assert draw(stage2, language, 0) == first
    assert draw(stage2, language, 1) != first
    generator = torch.Generator().manual_seed(0)
    config = settings("nucleus", 0, 6, num_captions=4, seed=0)
    one = [
        write_texts(stage2, language, token[None], PROMPT, config, generator)[0]
        for token in pictures(2)
    ]
    assert one == first
    assert write_texts(stage2, language, pictures(2), PROMPT, config) == first


def test_a_small_nucleus_is_greedy(stage2, language):
    expected = first_texts(stage2, language, pictures(2), PROMPT, longest=6)
    assert draw(stage2, language, 0, top_p=1e-6) == [[text] * 4 for text in expected]


def test_draws_come_from_the_nucleus_and_in_its_proportions(stage2, language):
    """Of one token, against the distribution written out."""
    with torch.no_grad():
        stage2.projection.weight.mul_(0.2)
        stage2.projection.bias.mul_(0.2)
    shares = next_scores(stage2, language, pictures(2)[0], PROMPT, []).softmax(dim=0)
    sizes = shares.sort(descending=True).values.cumsum(dim=0)
    kept = shares.topk(int((sizes < 0.8).sum()) + 1)
    expected = Counter[str]()
    for share, word in zip(kept.values.tolist(), kept.indices.tolist(), strict=True):
        expected[text_of(language, [word])] += share / float(kept.values.sum())
    (drawn, _) = draw(stage2, language, 0, longest=1, num_captions=2000, top_p=0.8)
    counts = Counter(drawn)
    assert set(counts) <= set(expected)
    for text, share in expected.items():
        spread = math.sqrt(share * (1 - share) / 2000)
        assert abs(counts[text] / 2000 - share) < 5 * spread + 1e-3, text


# What it does not take from elsewhere, and what it refuses


def test_what_a_model_brings_along_does_not_count(stage2, language):
    """Models come with settings of their own, and transformers would fill ours in with them."""
    expected = first_texts(stage2, language, pictures(3))
    theirs = language.model
    theirs.generation_config = transformers.GenerationConfig(
        do_sample=True, temperature=5.0, repetition_penalty=9.0, min_new_tokens=8, num_beams=4
    )
    again = LanguageModel(language.name, theirs, language.tokenizer)
    assert first_texts(stage2, again, pictures(3)) == expected


def test_more_tokens_than_there_are_positions_are_refused(stage2, language):
    room = 64 - QUERIES - len(prompt_ids(language, PROMPT))
    config = settings("greedy", 0, room + 1)
    if language.is_encoder_decoder:  # its positions are relative
        assert len(write_texts(stage2, language, pictures(1), PROMPT, config)) == 1
        return
    with pytest.raises(ConfigError, match=r"max_tokens: 4 queries and 61 .* the 64 positions of"):
        write_texts(stage2, language, pictures(1), PROMPT, config)
    first_texts(stage2, language, pictures(1), PROMPT, longest=room)


@torch.no_grad()
@pytest.mark.parametrize("prompt", ["", CAPTION_PROMPT])
def test_greedy_captions_are_those_of_transformers(both, prompt):
    language = both.language
    ids = torch.tensor([prompt_ids(language, prompt)] * 4)
    assert ids[0].tolist() == language.tokenizer(prompt)["input_ids"]  # as their processor has it
    start = both.theirs.language_model.generation_config
    start.eos_token_id, start.pad_token_id = language.end, language.end
    written = both.theirs.generate(
        pixel_values=both.pixels, input_ids=both.pictures(ids), max_new_tokens=12, do_sample=False
    )
    if not language.is_encoder_decoder:  # given ids too, it gives them back
        written = written[:, both.num_queries + ids.shape[1] :]
    theirs = language.tokenizer.batch_decode(written, skip_special_tokens=True)
    config = GenerationConfig(method="greedy", min_tokens=0, max_tokens=13)
    ours = write_texts(both.ours, language, both.tokens(), prompt, config)
    assert ours == [[text.strip()] for text in theirs]
    assert len({text for (text,) in ours}) > 1
