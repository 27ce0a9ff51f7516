"""Captions against transformers' generation and slow loops that keep nothing; each setting."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from tokenizers import BertWordPieceTokenizer
from torch import Tensor
from transformers import (
    GenerationConfig as TheirConfig,
)
from transformers import (
    GenerationMixin,
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TopPLogitsWarper,
)
from transformers.modeling_outputs import CausalLMOutput

from model.generation.settings import GenerationConfig
from model.generation.stage1 import Caption, write_captions
from model.stage1 import Stage1
from model.tokenizer import CaptionTokenizer
from pipeline.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def stage1(scattered_stage1):
    """In eval mode; what it writes depends on the picture, and some captions end by themselves."""
    return sighted(scattered_stage1(max_positions=24), end=2.3)


def sighted(made: Stage1, end: float) -> Stage1:
    """With a loud look at the picture, and the end of a caption this much more likely."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in made.qformer.layers:
            if layer.look is not None:
                layer.look.output.weight.normal_(0, 2.0, generator=generator)
        made.qformer.head.bias[made.tokenizer.sep] += end
    return made.eval()


def ending(stage1: Stage1, more: float) -> Stage1:
    """The same model, with a bias towards [SEP]."""
    made = Stage1(stage1.config, stage1.tokenizer).eval()
    made.load_state_dict(stage1.state_dict())
    with torch.no_grad():
        made.qformer.head.bias[stage1.tokenizer.sep] += more
    return made


def pictures(count: int) -> Tensor:
    return torch.randn(count, 5, 10, generator=torch.Generator().manual_seed(2)).half()


def words(found: list[list[Caption]]) -> list[list[tuple[int, ...]]]:
    return [[caption.tokens for caption in captions] for captions in found]


# The uncached form: all of it anew for each token, in one pass whose mask keeps queries from text


def attend(part, rows: Tensor, source: Tensor, seen: Tensor) -> Tensor:
    query, key, value = (
        x.unflatten(-1, (part.num_heads, -1)).movedim(-2, -3)
        for x in (part.query(rows), part.key(source), part.value(source))
    )
    weights = (query @ key.mT / math.sqrt(key.shape[-1])).masked_fill(~seen, -torch.inf)
    mixed = (weights.softmax(-1) @ value).movedim(-3, -2).flatten(-2)
    return part.norm(rows + part.output(mixed))


def think(net, rows: Tensor) -> Tensor:
    return net.norm(rows + net.down(F.gelu(net.up(rows))))


@torch.no_grad()
def uncached(stage1: Stage1, tokens: Tensor, ids: Tensor) -> Tensor:
    """Logits of what follows [DEC] and the rest of `ids` [B, T], of pictures [B, P, C]."""
    qformer, num_text = stage1.qformer, ids.shape[1]
    num_queries = qformer.config.num_queries
    image = stage1.ln_vision(tokens.float())
    text = qformer.embeddings.words(ids) + qformer.embeddings.positions.weight[:num_text]
    rows = torch.cat([qformer.query_tokens.expand(len(ids), -1, -1), text], dim=1)
    rows = qformer.embeddings.norm(rows)
    seen = torch.ones(num_queries + num_text, num_queries + num_text).tril().bool()
    seen[:num_queries, :num_queries] = True
    for layer in qformer.layers:
        rows = attend(layer.attention, rows, rows, seen)
        queries, text = rows[:, :num_queries], rows[:, num_queries:]
        if layer.look is not None:
            queries = attend(layer.look, queries, image, torch.tensor(True))
        queries = think(layer.query_feed_forward, queries)
        rows = torch.cat([queries, think(layer.text_feed_forward, text)], dim=1)
    last = qformer.head.norm(F.gelu(qformer.head.dense(rows[:, -1])))
    return last @ qformer.embeddings.words.weight.T + qformer.head.bias


class Uncached(PreTrainedModel, GenerationMixin):
    """The uncached form as transformers' generation sees a model."""

    config_class = PreTrainedConfig
    main_input_name = "input_ids"

    def __init__(self, stage1: Stage1) -> None:
        super().__init__(PreTrainedConfig(vocab_size=len(stage1.tokenizer)))
        self.stage1 = stage1

    def forward(self, input_ids, picture, **_):
        return CausalLMOutput(logits=uncached(self.stage1, picture, input_ids)[:, None])

    def prepare_inputs_for_generation(self, input_ids, picture, **_):
        return {"input_ids": input_ids, "picture": picture}


def never(tokenizer: CaptionTokenizer) -> list[int]:
    """[PAD], [UNK], [CLS], [MASK], [DEC]"""
    return [tokenizer.pad, 1, tokenizer.cls, 4, tokenizer.dec]


def by_transformers(stage1: Stage1, tokens: Tensor, config: GenerationConfig):
    """Tokens and scores of `generate` with the reference's settings of the same meaning."""
    tokenizer = stage1.tokenizer
    found = Uncached(stage1).generate(
        torch.full((len(tokens), 1), tokenizer.dec),
        picture=tokens,
        generation_config=TheirConfig(
            num_beams=config.num_beams if config.method == "beam" else 1,
            num_return_sequences=config.num_captions,
            min_length=config.min_tokens,
            max_length=config.max_tokens,
            repetition_penalty=config.repetition_penalty,
            early_stopping="never" if config.method == "beam" else False,
            suppress_tokens=never(tokenizer),
            bos_token_id=tokenizer.dec,
            eos_token_id=tokenizer.sep,
            pad_token_id=tokenizer.pad,
            use_cache=False,
        ),
    )
    rows = [
        tuple(word for word in row[1:] if word not in (tokenizer.sep, tokenizer.pad))
        for row in found.tolist()
    ]
    num = config.num_captions
    return [rows[start : start + num] for start in range(0, len(rows), num)]


@pytest.mark.parametrize(
    ("least", "most", "penalty"),
    [(0, 9, 1.0), (6, 9, 1.5), (10, 10, 1.0), (0, 2, 1.5), (1, 24, 1.0), (3, 20, 0.8)],
)
@pytest.mark.parametrize("beams", [0, 1, 3, 5])
def test_captions_are_those_of_transformers_without_a_cache(stage1, beams, least, most, penalty):
    config = GenerationConfig(
        method="beam" if beams else "greedy",
        num_beams=beams or 3,
        num_captions=min(beams, 2) or 1,
        min_tokens=least,
        max_tokens=most,
        repetition_penalty=penalty,
    )
    tokens = pictures(6)
    expected = by_transformers(stage1, tokens, config)
    assert len({its[0] for its in expected}) > 1
    assert words(write_captions(stage1, tokens, config)) == expected


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_captions_of_the_default_setting_are_those_of_transformers(scattered_stage1, penalty):
    config = GenerationConfig(repetition_penalty=penalty)
    assert (config.method, config.num_beams, config.num_captions) == ("beam", 3, 1)
    assert (config.min_tokens, config.max_tokens) == (10, 30)
    stage1 = sighted(scattered_stage1(max_positions=30), end=2.3)
    tokens = pictures(6)
    expected = by_transformers(stage1, tokens, config)
    assert len({its[0] for its in expected}) > 1
    assert len({len(its[0]) for its in expected}) > 1
    assert words(write_captions(stage1, tokens, config)) == expected


# Beam search


@pytest.fixture(scope="module")
def terse(tiny):
    """A stage 1 with a vocabulary of three words."""
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "boat"]
    vocabulary = {word: number for number, word in enumerate(known)}
    tokenizer = CaptionTokenizer.from_json(BertWordPieceTokenizer(vocab=vocabulary).to_str())
    made = Stage1(tiny(vocab_size=len(tokenizer)), tokenizer)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.5, generator=generator)
    return sighted(made, end=0.0)


def all_captions(stage1: Stage1, token: Tensor, least: int, most: int) -> dict[tuple, float]:
    """Every caption that may be written, and the log-probability of its tokens."""
    tokenizer = stage1.tokenizer
    whole: dict[tuple, float] = {}
    open_ = {(): 0.0}
    for length in range(1, most):
        longer = {}
        for ids, given in open_.items():
            logits = uncached(stage1, token[None], torch.tensor([[tokenizer.dec, *ids]]))
            for word, more in enumerate(logits[0].log_softmax(0).tolist()):
                if word in never(tokenizer) or (word == tokenizer.sep and length < least):
                    continue
                longer[(*ids, word)] = given + more
        ended = {ids for ids in longer if ids[-1] == tokenizer.sep or length == most - 1}
        whole |= {ids: longer.pop(ids) for ids in ended}
        open_ = longer
    return whole


@pytest.mark.parametrize(("least", "most", "num"), [(0, 5, 121), (3, 5, 117), (5, 5, 81)])
def test_wide_enough_a_search_finds_every_caption_the_best_mean_first(terse, least, most, num):
    tokens = pictures(2)
    config = GenerationConfig(
        num_beams=150, num_captions=130, min_tokens=least, max_tokens=most, method="beam"
    )
    for token, found in zip(tokens, write_captions(terse, tokens, config), strict=True):
        every = all_captions(terse, token, least, most)
        ranked = sorted(every, key=lambda ids: -every[ids] / len(ids))
        assert len(ranked) == num
        end = (terse.tokenizer.sep,)
        assert [its.tokens + end * its.ended for its in found] == ranked
        for its, ids in zip(found, ranked, strict=True):
            assert its.log_probability == pytest.approx(every[ids], abs=1e-4)


def test_the_best_captions_are_the_first_of_more(stage1):
    config = GenerationConfig(num_beams=4, num_captions=4, min_tokens=2, max_tokens=12)
    more = write_captions(stage1, pictures(5), config)
    for num in (1, 2, 3):
        found = write_captions(stage1, pictures(5), replace(config, num_captions=num))
        assert words(found) == [its[:num] for its in words(more)]
    assert all(len(set(its)) == 4 for its in words(more))


# Nucleus sampling


def slow_draws(stage1: Stage1, token: Tensor, draws: Tensor, config: GenerationConfig):
    """One caption, token by token, with transformers' processors and a walk along the nucleus."""
    tokenizer = stage1.tokenizer
    processors = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(config.repetition_penalty),
            MinLengthLogitsProcessor(config.min_tokens, tokenizer.sep),
            SuppressTokensLogitsProcessor(never(tokenizer)),
            TopPLogitsWarper(config.top_p),
        ]
    )
    ids, given = [tokenizer.dec], 0.0
    for number in draws.tolist():
        before = torch.tensor([ids])
        logits = uncached(stage1, token[None], before)
        shares = processors(before, logits.clone())[0].double().softmax(0).tolist()
        order = sorted((w for w in range(len(shares)) if shares[w] > 0), key=lambda w: -shares[w])
        upto = 0.0
        for word in order:
            upto += shares[word]
            if number < upto:
                break
        given += logits[0].log_softmax(0)[word].item()
        ids.append(word)
        if word == tokenizer.sep:
            break
    ended = ids[-1] == tokenizer.sep
    return tuple(ids[1:-1] if ended else ids[1:]), given, ended


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"top_p": 0.5, "num_captions": 1},
        {"top_p": 1.0},
        {"repetition_penalty": 2.0},
        {"min_tokens": 9},
        {"max_tokens": 2, "min_tokens": 2},
    ],
)
def test_draws_are_those_of_a_slow_walk(stage1, changes):
    config = replace(SAMPLED, **changes)
    tokens = pictures(4)
    draws = torch.rand(
        (len(tokens), config.num_captions, config.max_tokens - 1),
        generator=torch.Generator().manual_seed(7),
        dtype=torch.float64,
    )
    found = write_captions(stage1, tokens, config, torch.Generator().manual_seed(7))
    for token, its_draws, captions in zip(tokens, draws, found, strict=True):
        for numbers, caption in zip(its_draws, captions, strict=True):
            ids, given, ended = slow_draws(stage1, token, numbers, config)
            assert caption.tokens == ids
            assert caption.ended == ended
            assert caption.log_probability == pytest.approx(given, abs=1e-4)
            assert caption.text == stage1.tokenizer.decode(ids)


SAMPLED = GenerationConfig(method="nucleus", num_captions=3, min_tokens=0, max_tokens=12)


def test_the_seed_decides_unless_a_generator_is_given(stage1):
    tokens = pictures(4)
    torch.manual_seed(0)
    first = write_captions(stage1, tokens, SAMPLED)
    torch.manual_seed(1)
    assert write_captions(stage1, tokens, SAMPLED) == first
    other = replace(SAMPLED, seed=1)
    assert words(write_captions(stage1, tokens, other)) != words(first)
    given = torch.Generator().manual_seed(1)
    assert words(write_captions(stage1, tokens, SAMPLED, given)) == words(
        write_captions(stage1, tokens, other)
    )


def test_one_generator_goes_through_the_pictures_whatever_the_batches(stage1):
    tokens, whole = pictures(6), torch.Generator().manual_seed(3)
    together = write_captions(stage1, tokens, SAMPLED, whole)
    parts = torch.Generator().manual_seed(3)
    split = [write_captions(stage1, part, SAMPLED, parts) for part in tokens.split([1, 3, 2])]
    assert [its for part in split for its in words(part)] == words(together)
    assert whole.get_state().equal(parts.get_state())


def test_with_a_generator_each_pictures_come_in_any_order(stage1):
    tokens = pictures(5)

    def written(numbers: list[int]):
        generators = [torch.Generator().manual_seed(number) for number in numbers]
        return words(write_captions(stage1, tokens[numbers], SAMPLED, generators))

    together = written([0, 1, 2, 3, 4])
    assert written([4, 2]) == [together[4], together[2]]
    assert written([1]) == [together[1]]
    with pytest.raises(ValueError, match="2 generators for 1 picture"):
        write_captions(stage1, tokens[:1], SAMPLED, [torch.Generator()] * 2)


# Whatever the method

EACH = [
    GenerationConfig(method="greedy", min_tokens=0, max_tokens=10),
    GenerationConfig(num_beams=3, num_captions=2, min_tokens=0, max_tokens=10),
    replace(SAMPLED, max_tokens=10),
]
each = pytest.mark.parametrize("config", EACH, ids=lambda config: config.method)


@each
def test_a_caption_does_not_depend_on_its_neighbours(stage1, config):
    tokens = pictures(5)
    generators = [torch.Generator().manual_seed(number) for number in range(5)]
    together = words(write_captions(stage1, tokens, config, generators))
    assert len({its[0] for its in together}) > 1
    for number, token in enumerate(tokens):
        generator = torch.Generator().manual_seed(number)
        assert words(write_captions(stage1, token[None], config, generator)) == [together[number]]
    assert write_captions(stage1, tokens[:0], config) == []


@each
@pytest.mark.parametrize(("least", "more"), [(0, 30.0), (1, 30.0), (2, 30.0), (6, 30.0), (8, 30.0)])
def test_no_caption_ends_too_early(stage1, config, least, more):
    config = replace(config, min_tokens=least, max_tokens=8)
    for captions in write_captions(ending(stage1, more), pictures(4), config):
        assert len(captions[0].tokens) == max(least - 1, 0)
        assert captions[0].ended == (least < 8)
        assert all(len(its.tokens) >= least - 1 for its in captions)


@each
@pytest.mark.parametrize("most", [2, 3, 10, 24])
def test_no_caption_gets_too_long(stage1, config, most):
    config = replace(config, max_tokens=most)
    for captions in write_captions(ending(stage1, -30.0), pictures(4), config):
        assert [(len(its.tokens), its.ended) for its in captions] == [
            (most - 1, False)
        ] * config.num_captions
    for captions in write_captions(stage1, pictures(4), config):
        assert all(1 + len(its.tokens) + its.ended <= most for its in captions)


def repeated(found: list[list[Caption]]) -> int:
    """Words that were there before."""
    return sum(len(its.tokens) - len(set(its.tokens)) for captions in found for its in captions)


@each
def test_a_heavy_penalty_keeps_words_from_coming_again(stage1, config):
    config = replace(config, min_tokens=10)
    plain = repeated(write_captions(stage1, pictures(4), config))
    heavy = repeated(write_captions(stage1, pictures(4), replace(config, repetition_penalty=1e6)))
    light = repeated(write_captions(stage1, pictures(4), replace(config, repetition_penalty=0.5)))
    assert heavy < plain / 2 < plain < light


@each
def test_no_caption_holds_a_special_token(stage1, config):
    bent = ending(stage1, 0.0)
    with torch.no_grad():
        bent.qformer.head.bias[never(bent.tokenizer)] += 100.0
    found = write_captions(bent, pictures(4), replace(config, min_tokens=8))
    for captions in found:
        for its in captions:
            assert not {*never(bent.tokenizer), bent.tokenizer.sep} & set(its.tokens)
            assert len(its.text.replace(",", " ,").split()) == len(its.tokens) >= 7


@each
def test_log_probability_is_what_the_model_gives_all_tokens(stage1, config):
    tokenizer = stage1.tokenizer
    config = replace(config, repetition_penalty=1.3, min_tokens=4)
    for token, captions in zip(
        pictures(3), write_captions(stage1, pictures(3), config), strict=True
    ):
        for its in captions:
            ids = [tokenizer.dec, *its.tokens] + [tokenizer.sep] * its.ended
            given = sum(
                uncached(stage1, token[None], torch.tensor([ids[:end]]))[0].log_softmax(0)[ids[end]]
                for end in range(1, len(ids))
            )
            assert its.log_probability == pytest.approx(given.item(), abs=1e-4)


@each
def test_each_token_is_read_once_and_the_picture_too(stage1, config, monkeypatch):
    stage1 = ending(stage1, -30.0)
    read, seen = [], []
    write, see, keys = stage1.qformer.write, stage1.qformer.see, stage1.image_keys
    monkeypatch.setattr(
        stage1.qformer, "write", lambda *args: read.append(tuple(args[1].shape)) or write(*args)
    )
    monkeypatch.setattr(stage1.qformer, "see", lambda image: seen.append(1) or see(image))
    monkeypatch.setattr(stage1, "image_keys", lambda x: seen.append(len(x)) or keys(x))
    write_captions(stage1, pictures(2), replace(config, max_tokens=7))
    num = {"greedy": 1, "beam": 3, "nucleus": 3}[config.method]
    assert seen == [2, 1]
    assert read == [(2, 1)] + [(2 * num, 1)] * 5


@each
def test_captions_that_have_ended_are_read_no_further(stage1, config, monkeypatch):
    asked = []
    stage1 = ending(stage1, 30.0)
    write = stage1.qformer.write
    monkeypatch.setattr(
        stage1.qformer, "write", lambda *args: asked.append(len(args[1])) or write(*args)
    )
    found = write_captions(stage1, pictures(3), replace(config, num_captions=1))
    assert words(found) == [[()]] * 3
    assert asked == [3]
    assert all(its.ended and its.text == "" for (its,) in found)


# What cannot be


def test_more_tokens_than_there_are_positions_are_refused(stage1):
    config = GenerationConfig(method="greedy", max_tokens=24)
    assert len(write_captions(stage1, pictures(1), config)) == 1
    with pytest.raises(ConfigError, match="max_tokens: 25, but max_positions=24"):
        write_captions(stage1, pictures(1), replace(config, max_tokens=25))


@each
def test_shapes_are_as_written(checked, tiny, tokenizer, config):
    strict = checked.stage1.Stage1(checked.qformer.QFormerConfig(**vars(tiny())), tokenizer).eval()
    config = checked.generation_settings.GenerationConfig(**vars(config))
    found = checked.generation_stage1.write_captions(strict, pictures(3).float(), config)
    assert [len(captions) for captions in found] == [config.num_captions] * 3
