"""Captions of stage 1 against a slow loop that keeps nothing; draws stay in the nucleus."""

from collections import Counter

import pytest
import torch
from torch import Tensor

from model.generation import write_captions
from model.stage1 import Stage1
from pipeline.errors import ConfigError


@pytest.fixture(scope="module")
def stage1(scattered_stage1):
    """In eval mode; what it writes depends on the picture."""
    made = scattered_stage1(max_positions=24).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in made.qformer.layers:
            if layer.look is not None:
                layer.look.output.weight.normal_(0, 2.0, generator=generator)
    return made


def pictures(count: int) -> Tensor:
    return torch.randn(count, 5, 10, generator=torch.Generator().manual_seed(2)).half()


@torch.no_grad()
def shares(stage1: Stage1, token: Tensor, words: list[int]) -> Tensor:
    """Probability of each next token after [DEC] and these words, all computed anew."""
    _, queries = stage1.qformer.see(stage1.image_keys(token[None]))
    ids = torch.tensor([[stage1.tokenizer.dec, *words]])
    logits, _ = stage1.qformer.write(queries, ids, torch.ones_like(ids, dtype=torch.bool))
    never = [stage1.tokenizer.pad, stage1.tokenizer.cls, stage1.tokenizer.dec]
    logits[0, -1, never] = float("-inf")
    return logits[0, -1].softmax(dim=0)


def greedy(stage1: Stage1, token: Tensor, max_tokens: int) -> list[int]:
    words: list[int] = []
    while len(words) < max_tokens and stage1.tokenizer.sep not in words:
        words.append(int(shares(stage1, token, words).argmax()))
    return words


# Greedy


@pytest.mark.parametrize("max_tokens", [1, 3, 12])
def test_captions_are_the_most_probable_tokens(stage1, max_tokens):
    tokens = pictures(6)
    expected = [greedy(stage1, token, max_tokens) for token in tokens]
    assert len({tuple(words) for words in expected}) > 1
    found = write_captions(stage1, tokens, max_tokens=max_tokens)
    assert found == [stage1.tokenizer.decode(words) for words in expected]


def test_a_caption_does_not_depend_on_its_neighbours(stage1):
    tokens = pictures(5)
    together = write_captions(stage1, tokens, max_tokens=8)
    assert [write_captions(stage1, token[None], max_tokens=8)[0] for token in tokens] == together
    assert write_captions(stage1, tokens.flip(0), max_tokens=8) == together[::-1]
    assert write_captions(stage1, tokens[:0], max_tokens=8) == []


def exchanged(stage1: Stage1, one: int, other: int) -> Stage1:
    """A model that says either word where the given one says the other."""
    weights = {name: value.clone() for name, value in stage1.state_dict().items()}
    for name in ("qformer.embeddings.words.weight", "qformer.head.bias"):
        weights[name][[one, other]] = weights[name][[other, one]]
    made = Stage1(stage1.config, stage1.tokenizer).eval()
    made.load_state_dict(weights)
    return made


def test_a_caption_ends_with_sep_whatever_its_neighbours_do(stage1):
    tokens = pictures(6)
    first = greedy(stage1, tokens[0], 10)
    end = next(word for word in first if word != first[0])
    ending = exchanged(stage1, stage1.tokenizer.sep, end)
    expected = [greedy(ending, token, 10) for token in tokens]
    lengths = [len(words) for words in expected]
    assert min(lengths) < max(lengths)
    assert 1 < lengths[0] < 10
    found = write_captions(ending, tokens, max_tokens=10)
    assert found == [ending.tokenizer.decode(words) for words in expected]


def test_nothing_is_computed_once_all_have_ended(stage1, monkeypatch):
    ending = exchanged(stage1, stage1.tokenizer.sep, greedy(stage1, pictures(1)[0], 1)[0])
    asked = []
    write = ending.qformer.write
    monkeypatch.setattr(
        ending.qformer, "write", lambda *args: asked.append(args[1].shape) or write(*args)
    )
    assert write_captions(ending, pictures(1), max_tokens=20) == [""]
    assert asked == [(1, 1)]


def test_each_token_is_read_once_and_the_picture_too(stage1, monkeypatch):
    read, seen = [], []
    write, see = stage1.qformer.write, stage1.qformer.see
    monkeypatch.setattr(
        stage1.qformer, "write", lambda *args: read.append(args[1].shape[1]) or write(*args)
    )
    monkeypatch.setattr(stage1.qformer, "see", lambda image: seen.append(1) or see(image))
    write_captions(stage1, pictures(2), max_tokens=7)
    assert read == [1] * len(read)
    assert len(read) <= 7
    assert len(seen) == 1


def test_what_no_caption_holds_is_never_written(stage1):
    tokenizer = stage1.tokenizer
    bent = exchanged(stage1, 0, 0)
    with torch.no_grad():
        bent.qformer.head.bias[[tokenizer.pad, tokenizer.cls, tokenizer.dec]] = 1e4
    tokens = pictures(4)
    expected = write_captions(stage1, tokens, max_tokens=6)
    assert write_captions(bent, tokens, max_tokens=6) == expected
    assert all(expected)


def test_more_tokens_than_there_are_positions_are_refused(stage1):
    assert len(write_captions(stage1, pictures(1), max_tokens=24)) == 1
    with pytest.raises(ConfigError, match="max_tokens: 25"):
        write_captions(stage1, pictures(1), max_tokens=25)


# Nucleus sampling


def nucleus(found: Tensor, top_p: float) -> dict[int, float]:
    """The fewest tokens that hold this share, the most probable first, and their new shares."""
    kept: dict[int, float] = {}
    for word in sorted(range(len(found)), key=lambda word: -found[word].item()):
        if sum(kept.values()) >= top_p:
            break
        kept[word] = found[word].item()
    return {word: share / sum(kept.values()) for word, share in kept.items()}


@pytest.mark.parametrize("top_p", [0.3, 0.6, 0.9])
def test_draws_are_from_the_nucleus_in_proportion(stage1, top_p):
    token = pictures(1)[0]
    found = shares(stage1, token, [])
    expected: Counter[str] = Counter()
    for word, share in nucleus(found, top_p).items():
        expected[stage1.tokenizer.decode([word])] += share
    assert 1 < len(expected) < len(found) - 3
    count = 3000
    drawn = Counter(
        write_captions(
            stage1,
            token.expand(count, -1, -1),
            max_tokens=1,
            top_p=top_p,
            generator=torch.Generator().manual_seed(0),
        )
    )
    assert set(drawn) <= set(expected)
    for text, share in expected.items():
        assert drawn[text] / count == pytest.approx(share, abs=0.04)


def sampled(stage1: Stage1, seed: int, top_p: float = 0.9) -> list[str]:
    generator = torch.Generator().manual_seed(seed)
    return write_captions(stage1, pictures(4), max_tokens=8, top_p=top_p, generator=generator)


def test_equal_generators_give_equal_captions(stage1):
    torch.manual_seed(0)
    first = sampled(stage1, seed=1)
    torch.manual_seed(1)
    assert sampled(stage1, seed=1) == first
    assert sampled(stage1, seed=2) != first


def test_a_small_nucleus_is_the_most_probable_token(stage1):
    assert sampled(stage1, seed=0, top_p=1e-6) == write_captions(stage1, pictures(4), max_tokens=8)


def test_with_a_nucleus_of_everything_every_word_can_be_drawn(stage1):
    token = pictures(1)[0]
    found = shares(stage1, token, [])
    texts = {stage1.tokenizer.decode([word]) for word in range(len(found)) if found[word] > 2e-3}
    drawn = write_captions(
        stage1,
        token.expand(6000, -1, -1),
        max_tokens=1,
        top_p=1.0,
        generator=torch.Generator().manual_seed(0),
    )
    assert texts <= set(drawn)
