"""Queries of all kinds against sums written out, with vectors and matches that are made up."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from indexes.retrieval import FoundCaption, FoundPicture
from jobs.search_models import TokensOfParts
from jobs.search_queries import Query, Searcher, as_json, query_vectors
from pipeline.errors import ConfigError

GREY = Image.new("RGB", (4, 4), "grey")
NUM_PICTURES = 9


def unit(*shape: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


PICTURES = unit(NUM_PICTURES, 2, 5, seed=1)
CAPTIONS = unit(NUM_PICTURES, 5, seed=2)


def found(row: int, score: float = 1.0) -> FoundPicture:
    return FoundPicture(score, bytes([row] * 16), f"http://x/{row}", [f"caption {row}"], 0, row)


class Index:
    """A plain one: all scores, sorted."""

    folder = "index"
    caption_vectors = object()

    def search_texts(self, vectors: np.ndarray, k: int) -> list[list[FoundPicture]]:
        return self.search_pictures(vectors[:, None], k)

    def search_pictures(self, vectors: np.ndarray, k: int) -> list[list[FoundPicture]]:
        scores = np.einsum("nae,pqe->npaq", vectors, PICTURES).max(axis=(2, 3))
        return [[found(row, its[row]) for row in np.argsort(-its)[:k]] for its in scores]

    def search_captions(self, vectors: np.ndarray, k: int) -> list[list[FoundCaption]]:
        scores = np.einsum("nae,me->nma", vectors, CAPTIONS).max(axis=2)
        return [
            [FoundCaption(its[m], f"caption {m}", bytes([m] * 16)) for m in np.argsort(-its)[:k]]
            for its in scores
        ]


@dataclass
class Embedder:
    """Tokens of a picture are its number; a match is what a table says."""

    matches_of: dict[tuple[int, str], float] | None = None

    def texts(self, texts):
        return np.stack([unit(5, seed=len(text)) for text in texts])

    def tokens(self, pictures):
        return torch.tensor([[[float(p.getpixel((0, 0))[0])]] for p in pictures])

    def pictures(self, tokens):
        return np.stack([PICTURES[int(one)] for one in tokens.flatten()])

    def matches(self, tokens, texts):
        rows = tokens.flatten().int().tolist()
        return [
            [self.matches_of[row, text] for text in its]
            for row, its in zip(rows, texts, strict=True)
        ]


def tokens(pictures):
    return torch.tensor([[[float(one.row)]] for one in pictures])


def picture(row: int) -> Image.Image:
    return Image.new("RGB", (1, 1), (row, 0, 0))


def rows(answer) -> list[int]:
    return [one.found.uid[0] for one in answer]


def best(vectors: np.ndarray, k: int) -> list[int]:
    """Rows by hand: the largest of all products of two vectors."""
    scores = [max(float(v @ p) for v in vectors for p in PICTURES[row]) for row in range(9)]
    return sorted(range(NUM_PICTURES), key=lambda row: -scores[row])[:k]


def test_queries_of_all_kinds_are_answered_together_as_they_are_alone():
    searcher = Searcher(Index(), Embedder(), tokens)
    queries = [
        Query(text="a boat", k=3),
        Query(picture=picture(4), k=2),
        Query(text="red", picture=picture(4), k=4),
        Query(like=found(6), k=2),
        Query(picture=picture(2), k=5, find="captions"),
        Query(text="longer text", k=9),
        Query(text="red", like=found(4), k=1),
    ]
    together = searcher.answers(queries)
    assert together == [searcher.answers([query])[0] for query in queries]
    assert rows(together[0]) == best(unit(1, 5, seed=len("a boat")), 3)
    assert rows(together[1]) == best(PICTURES[4], 2)
    assert rows(together[1])[0] == 4
    assert rows(together[3]) == [row for row in best(PICTURES[6], 9) if row != 6][:2]
    by_caption = sorted(range(9), key=lambda m: -max(PICTURES[2] @ CAPTIONS[m]))
    assert rows(together[4]) == by_caption[:5]
    assert len(together[5]) == NUM_PICTURES
    both = PICTURES[4] + unit(5, seed=3)
    both /= np.linalg.norm(both, axis=1, keepdims=True)
    assert rows(together[2]) == best(both, 4)
    assert rows(together[6]) == [row for row in best(both, 2) if row != 4][:1]


def test_a_text_moves_each_vector_of_a_picture_halfway():
    pictures = np.array([[1, 0, 0], [0, 0, 1]], np.float32)
    text = np.array([0, 1, 0], np.float32)
    half = np.sqrt(0.5)
    expected = [[half, half, 0], [0, half, half]]
    assert query_vectors(text, pictures) == pytest.approx(np.array(expected))
    assert np.array_equal(query_vectors(text, None), text[None])
    assert np.array_equal(query_vectors(None, pictures), pictures)
    # Away from each other there is no way between: the picture stays.
    assert np.array_equal(query_vectors(-pictures[0], pictures)[0], pictures[0])
    with pytest.raises(ValueError, match="neither a text nor a picture"):
        query_vectors(None, None)


def test_candidates_are_put_in_the_order_of_their_matches():
    matches = {(row, "red"): float(row % 4) for row in range(9)}
    searcher = Searcher(Index(), Embedder(matches), tokens)
    candidates = best(unit(1, 5, seed=3), 6)
    (answer,) = searcher.answers([Query(text=" red ", k=3, rerank=6)])
    # Of equal matches the one that ITC has first comes first.
    expected = sorted(candidates, key=lambda row: (-(row % 4), candidates.index(row)))[:3]
    assert rows(answer) == expected
    assert [one.match for one in answer] == [float(row % 4) for row in expected]
    told = as_json(answer)
    assert [one["rank"] for one in told] == [1, 2, 3]
    assert [one["match"] for one in told] == [float(row % 4) for row in expected]
    assert list(told[0])[:3] == ["rank", "score", "match"]


def test_captions_are_matched_with_the_picture_that_asks():
    matches = {(2, f"caption {m}"): float(-m) for m in range(9)}
    searcher = Searcher(Index(), Embedder(matches), None)
    query = Query(picture=picture(2), k=2, rerank=4, find="captions")
    (answer,) = searcher.answers([query])
    candidates = sorted(range(9), key=lambda m: -max(PICTURES[2] @ CAPTIONS[m]))[:4]
    assert rows(answer) == sorted(candidates)[:2]
    assert [one["text"] for one in as_json(answer)] == [f"caption {m}" for m in rows(answer)]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "text, picture: give a text or a picture"),
        ({"text": " \t"}, "text: it is empty"),
        ({"text": "a", "k": 0}, "k: 0 is not positive"),
        ({"picture": GREY, "like": found(1)}, "picture: there are two"),
        ({"text": "a", "find": "captions"}, "captions are found by a picture alone"),
        ({"text": "a", "picture": GREY, "find": "captions"}, "found by a picture alone"),
        ({"text": "a", "k": 10, "rerank": 9}, "rerank: 9 is less than k=10"),
        ({"picture": GREY, "rerank": 20}, "no text to be matched with"),
    ],
)
def test_what_cannot_be_asked_is_one_line(fields, said):
    with pytest.raises(ConfigError, match=said):
        Query(**fields)


def test_tokens_of_each_part_come_from_its_own_source_in_the_order_asked_for():
    """One has them in half precision, the other not."""
    asked = [replace(found(row), part=row % 2) for row in (3, 4, 1, 8, 5)]
    seen = []

    def source(part: int, kind: torch.dtype):
        def read(pictures):
            seen.append((part, [one.row for one in pictures]))
            return tokens(pictures).to(kind)

        return read

    parts = TokensOfParts([source(0, torch.float16), source(1, torch.float32)])
    assert parts(asked).flatten().tolist() == [3, 4, 1, 8, 5]
    assert seen == [(0, [4, 8]), (1, [3, 1, 5])]


def test_tokens_that_cannot_be_had_are_said_to_be_needed():
    searcher = Searcher(SimpleNamespace(folder="the/index"), Embedder(), None)
    with pytest.raises(ConfigError, match=r"the/index.*--features, or their pairs with --pairs"):
        searcher.answers([Query(like=found(1))])
