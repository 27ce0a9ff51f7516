"""Re-ranking scores, against passes of their own for each pair."""

import numpy as np
import pytest
import torch

from model.layers import Attention
from model.reranking import match_scores, rerank_scores

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def stage1(exact_stage1):
    return exact_stage1


@pytest.fixture
def texts(captions) -> list[list[str]]:
    """Of five pictures: any number, one of them too long, some twice, some of several pictures."""
    one, two, three, long, _, six = captions
    return [[one, two, three, long], [], [three, three, one], [six], [long, "", two, one]]


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randn(5, 7, 10, generator=torch.Generator().manual_seed(1)).half()


@pytest.mark.parametrize("at_once", [1, 2, 7, 256])
def test_scores_are_those_of_each_pair_alone(stage1, pair_alone, tokens, texts, at_once):
    scores = rerank_scores(stage1, tokens, texts, pairs_at_once=at_once)
    logits = match_scores(stage1, tokens, texts, pairs_at_once=at_once)
    for token, its, score, logit in zip(tokens, texts, scores, logits, strict=True):
        alone = [pair_alone(stage1, token, text) for text in its]
        expected = [(cosine, float(both[1])) for cosine, both in alone]
        assert score.dtype == logit.dtype == np.float64
        assert score.tolist() == pytest.approx([c + m for c, m in expected], abs=1e-9)
        assert logit.tolist() == pytest.approx([m for _, m in expected], abs=1e-9)
    assert np.ptp(np.concatenate(scores)) > 0.5  # else they could be those of anything


def test_equal_texts_of_a_picture_score_the_same_to_the_bit(scattered_stage1, tokens, texts):
    rounding = scattered_stage1(max_text_tokens=10).eval()
    first, again, _ = rerank_scores(rounding, tokens, texts, pairs_at_once=1)[2]
    assert first == again


def test_a_picture_is_looked_at_once_for_all_its_texts(stage1, tokens, texts, monkeypatch):
    seen = []
    keys_values = Attention.keys_values_of_norm

    def counted(self, normed, norm):
        seen.append(len(normed))
        return keys_values(self, normed, norm)

    monkeypatch.setattr(Attention, "keys_values_of_norm", counted)
    rerank_scores(stage1, tokens, texts, pairs_at_once=2)
    assert seen == [len(tokens)] * 2  # two of the three layers look


def test_no_more_pairs_are_looked_at_than_asked_for(stage1, tokens, texts, monkeypatch):
    asked = []
    logits = stage1.match_logits
    monkeypatch.setattr(
        stage1,
        "match_logits",
        lambda seen, read, *more: asked.append(len(read.ids)) or logits(seen, read, *more),
    )
    match_scores(stage1, tokens, texts, pairs_at_once=4)
    assert asked == [4, 4, 3]  # eleven that differ


def test_nothing_to_compare_is_no_score(stage1, tokens):
    assert [len(its) for its in rerank_scores(stage1, tokens[:2], [[], []])] == [0, 0]
    assert match_scores(stage1, tokens[:0], []) == []
    with pytest.raises(ValueError, match="texts of 1 pictures for 2 pictures"):
        rerank_scores(stage1, tokens[:2], [["a man"]])


def test_shapes_are_as_written(checked, tiny, tokenizer, tokens, texts):
    module = checked.stage1
    stage1 = module.Stage1(module.QFormerConfig(**vars(tiny())), tokenizer).eval()
    found = checked.reranking.rerank_scores(stage1, tokens, texts, pairs_at_once=3)
    assert [len(its) for its in found] == [len(its) for its in texts]
