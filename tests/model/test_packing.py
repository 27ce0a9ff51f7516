"""Packed texts keep what padded ones hold; rows come back from where they were spread."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.packing import Repeated, Texts, View, joined, query_places, text_places

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=5)


def texts_of(lengths: list[int], width: int | None = None) -> Texts:
    """Text n holds 10 n, 10 n + 1, ...; its padding is -1."""
    width = width or max(lengths)
    present = torch.arange(width) < torch.tensor(lengths)[:, None]
    ids = 10 + 10 * torch.arange(len(lengths))[:, None] + torch.arange(width)
    return Texts.packed(ids.masked_fill(~present, -1), present)


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, more=st.integers(0, 3))
def test_tokens_come_text_by_text_whatever_the_padding(lengths, more):
    texts = texts_of(lengths, max(lengths) + more)
    pairs = [(n, p) for n, length in enumerate(lengths) for p in range(length)]
    assert texts.tokens.tolist() == [10 + 10 * n + p for n, p in pairs]
    assert texts.text.tolist() == [n for n, _ in pairs]
    assert texts.position.tolist() == [p for _, p in pairs]
    assert texts.first.tolist() == [sum(lengths[:n]) for n in range(len(lengths))]
    wide = texts.widened(texts.width + 2)
    assert wide.width == texts.width + 2
    assert wide.tokens.tolist() == texts.tokens.tolist()
    assert wide.position.tolist() == texts.position.tolist()
    assert wide.present.sum() == sum(lengths)


@settings(max_examples=40, deadline=None)
@given(first=LENGTHS, second=LENGTHS, order=st.randoms(use_true_random=False))
def test_joined_texts_are_one_list_of_texts(first, second, order):
    numbers = order.sample(range(len(first) + len(second)), len(first) + len(second))
    ours, theirs = torch.tensor(numbers[: len(first)]), torch.tensor(numbers[len(first) :])
    both = joined([(texts_of(first), ours), (texts_of(second), theirs)])
    width = max(first + second)
    for texts, its in ((texts_of(first, width), ours), (texts_of(second, width), theirs)):
        assert torch.equal(both.present[its], texts.present)
        assert torch.equal(both.ids[its][texts.present], texts.ids[texts.present])
    assert torch.equal(both.places, both.present.flatten().nonzero()[:, 0])


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, picks=st.lists(st.integers(0, 4), min_size=1), more=st.integers(0, 3))
def test_each_row_of_equal_texts_is_that_of_one(lengths, picks, more):
    distinct, which = texts_of(lengths), torch.tensor([pick % len(lengths) for pick in picks])
    same = Texts.packed(distinct.ids[which], distinct.present[which]).widened(distinct.width + more)
    rows = Repeated(distinct, which).rows(same)
    assert torch.equal(distinct.tokens[rows], same.tokens)
    assert torch.equal(distinct.text[rows], which[same.text])


def test_a_gpu_keeps_padding_rather_than_wait_for_its_number():
    lengths = [2, 3]
    texts = texts_of(lengths)
    there = Texts.packed(texts.ids.to("meta"), texts.present.to("meta"))
    assert there.places.shape == (6,)
    assert len(texts.places) == 5


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, num_queries=st.integers(1, 3))
def test_rows_come_back_from_the_view(lengths, num_queries):
    texts = texts_of(lengths)
    width = num_queries + texts.width
    queries = query_places(len(lengths), num_queries, width, "cpu")
    places = torch.cat([queries, text_places(texts, width, num_queries)])
    assert len(set(places.tolist())) == len(places)
    view = View(len(lengths), width, places)
    rows = torch.randn(len(places), 2)
    spread = view.spread(rows)
    assert torch.equal(view.collect(spread), rows)
    for n, length in enumerate(lengths):
        first = len(queries) + sum(lengths[:n])
        assert torch.equal(spread[n, :num_queries], rows[n * num_queries : (n + 1) * num_queries])
        text = spread[n, num_queries:]
        assert torch.equal(text[:length], rows[first : first + length])
    some = torch.tensor([len(rows) - 1, 0])
    assert torch.equal(view.only(some).collect(spread), rows[some])


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS)
def test_gradients_come_back_from_the_view(lengths):
    texts = texts_of(lengths)
    view = View(len(lengths), texts.width, texts.places)
    rows = torch.randn(len(texts.places), 2, dtype=torch.float64, requires_grad=True)

    def through_the_view(rows):
        # Only rows are read again, and one of them is read where all others stand.
        spread = view.spread(rows)
        return view.collect(spread * spread[0, 0].sin())

    assert torch.autograd.gradcheck(through_the_view, rows)


def test_a_full_view_is_the_rows_in_order():
    rows = torch.arange(12.0).view(6, 2)
    view = View(2, 3)
    assert torch.equal(view.spread(rows), rows.view(2, 3, 2))
    assert torch.equal(view.collect(view.spread(rows)), rows)
    wanted = torch.tensor([4, 1])
    assert torch.equal(view.only(wanted).collect(view.spread(rows)), rows[wanted])
