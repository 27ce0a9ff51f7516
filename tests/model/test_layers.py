"""A Q-Former's parts compute what BERT's do, written plainly here."""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from model.layers import (
    INIT_STD,
    Attention,
    Embeddings,
    FeedForward,
    LanguageHead,
    init_std,
    initialise,
)
from model.packing import Texts, View, text_places
from model.tied_words import TiedWords

WIDTH, HEADS, EPS = 12, 3, 1e-12


def scattered(module: nn.Module) -> nn.Module:
    """In float64 and eval mode, with weights large enough for every part to matter."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return module.double().eval()


def rows(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attended(part: Attention, queries: Tensor, source: Tensor, seen: Tensor) -> Tensor:
    """Of one sequence [T, D], head by head."""
    query, key, value = part.query(queries), part.key(source), part.value(source)
    size, heads = WIDTH // HEADS, []
    for head in range(HEADS):
        own = slice(head * size, (head + 1) * size)
        scores = query[:, own] @ key[:, own].T / math.sqrt(size)
        heads.append(scores.masked_fill(~seen, -torch.inf).softmax(dim=1) @ value[:, own])
    return part.norm(queries + part.output(torch.cat(heads, dim=1)))


@torch.no_grad()
def test_packed_rows_look_at_each_other_as_sequences_of_their_own():
    part = scattered(Attention(WIDTH, WIDTH, HEADS, 0.0, EPS))
    present = torch.arange(4) < torch.tensor([[4], [2], [3]])
    texts = Texts.packed(torch.zeros(3, 4, dtype=torch.long), present)
    view = View(3, 4, text_places(texts, 4, 0), present[:, None, None, :])
    packed = rows(9, WIDTH)
    found, (keys, values) = part.look_at_each_other(packed, view)
    for row, sequence in enumerate(packed.split([4, 2, 3])):
        seen = torch.ones(len(sequence), len(sequence), dtype=torch.bool)
        expected = attended(part, sequence, sequence, seen)
        torch.testing.assert_close(found[texts.text == row], expected)
        torch.testing.assert_close(keys[row, : len(sequence)], part.key(sequence))
        torch.testing.assert_close(values[row, : len(sequence)], part.value(sequence))
    wanted = torch.tensor([0, 5, 8])
    some, _ = part.look_at_each_other(packed, view, wanted=wanted)
    torch.testing.assert_close(some, found[wanted])


@torch.no_grad()
def test_keys_and_values_of_a_norm_are_those_of_what_it_gives():
    part, norm = scattered(Attention(WIDTH, 7, HEADS, 0.0, EPS)), scattered(nn.LayerNorm(7))
    tokens = rows(2, 5, 7)
    found = part.keys_values_of_norm(F.layer_norm(tokens, (7,), eps=norm.eps), norm)
    for its, expected in zip(found, (part.key, part.value), strict=True):
        torch.testing.assert_close(its, expected(norm(tokens)))


@torch.no_grad()
def test_a_feed_forward_net_is_berts():
    part, x = scattered(FeedForward(WIDTH, 20, 0.0, EPS)), rows(4, WIDTH)
    hidden = part.up(x)
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    torch.testing.assert_close(part(x), part.norm(x + part.down(hidden)))


@torch.no_grad()
def test_the_language_head_scores_by_the_words_themselves():
    part, x, words = scattered(LanguageHead(WIDTH, 9, EPS)), rows(4, WIDTH), rows(9, WIDTH, seed=2)
    hidden = part.norm(F.gelu(part.dense(x)))
    for word in range(9):
        found = part(x, TiedWords(words))[:, word]
        torch.testing.assert_close(found, hidden @ words[word] + part.bias[word])


@torch.no_grad()
def test_only_text_has_words_and_positions():
    shape = {"vocab_size": 9, "max_positions": 5}
    part = scattered(Embeddings(WIDTH, 0.0, EPS, **shape, with_text=True))
    queries, tokens, positions = rows(2, WIDTH), torch.tensor([7, 3, 7]), torch.tensor([0, 1, 4])
    found = part(queries, tokens, positions)
    text = [part.words.weight[t] + part.positions.weight[p] for t, p in ((7, 0), (3, 1), (7, 4))]
    torch.testing.assert_close(found, part.norm(torch.cat([queries, torch.stack(text)])))
    torch.testing.assert_close(part(tokens=tokens, positions=positions), found[2:])
    silent = Embeddings(WIDTH, 0.0, EPS, **shape, with_text=False)
    assert sum(weights.numel() for weights in silent.parameters()) == 2 * WIDTH
    with pytest.raises(TypeError, match="without text cannot read"):
        silent(queries, tokens, positions)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Attention(WIDTH, WIDTH, HEADS, 0.5, EPS).output,
        lambda: nn.Embedding(300, 40),
        lambda: nn.Linear(300, 40, bias=False),
    ],
)
def test_what_starts_from_scratch_is_normal_and_its_bias_zero(make):
    module = make()
    torch.manual_seed(0)
    initialise(module, 0.3)
    assert module.weight.std().item() == pytest.approx(0.3, rel=0.2)
    assert abs(module.weight.mean().item()) < 0.1
    assert getattr(module, "bias", None) is None or not module.bias.any()


def test_a_layer_of_any_width_has_as_much_to_say():
    """The sum over the width of squares is that of BERT's 768."""
    assert init_std(768) == INIT_STD == 0.02
    for width in (24, 384):
        assert width * init_std(width) ** 2 == pytest.approx(768 * 0.02**2)
