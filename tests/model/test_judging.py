"""What stage 1 says of texts and pictures, against passes of their own for each pair."""

import pytest
import torch

from model.judging import Fit, Stage1Judge
from model.layers import Attention

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def stage1(exact_stage1):
    return exact_stage1


@pytest.fixture
def texts(captions) -> list[list[str]]:
    """Of six pictures: any number, one of them too long; the same ones again and in capitals."""
    one, two, three, long, five, six = captions
    return [
        [one, two, three, long, five],
        [],
        [three],
        [six, six, one],
        [long, "Two DOGS run over the grass", two, "", one],
        [five],
    ]


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randn(6, 7, 10, generator=torch.Generator().manual_seed(1)).half()


@pytest.mark.parametrize("at_once", [1, 2, 7, 256])
def test_scores_are_those_of_each_pair_alone(stage1, pair_alone, tokens, texts, at_once):
    found = Stage1Judge(stage1, at_once).scores(tokens, texts)
    assert [len(its) for its in found] == [len(its) for its in texts]
    for token, its, fits in zip(tokens, texts, found, strict=True):
        for text, fit in zip(its, fits, strict=True):
            cosine, logits = pair_alone(stage1, token, text)
            expected = Fit(cosine, float(logits.softmax(0)[1]))
            assert fit == pytest.approx(expected, abs=1e-9)
    every = [fit for fits in found for fit in fits]
    assert max(fit.itm for fit in every) - min(fit.itm for fit in every) > 0.1
    assert max(fit.itc for fit in every) - min(fit.itc for fit in every) > 0.2


def test_a_judge_that_tells_no_match_computes_none(stage1, tokens, texts, monkeypatch):
    both = Stage1Judge(stage1).scores(tokens, texts)
    monkeypatch.setattr(stage1, "match_logits", None)  # would fail
    found = Stage1Judge(stage1, tells_match=False).scores(tokens, texts)
    assert found == [[Fit(fit.itc) for fit in its] for its in both]
    assert found[0][0].itm is None


def test_what_is_the_same_to_the_tokenizer_is_judged_once(stage1, tokens, texts, monkeypatch):
    asked = []
    logits = stage1.match_logits
    monkeypatch.setattr(
        stage1,
        "match_logits",
        lambda seen, read, *more: asked.append(len(read.ids)) or logits(seen, read, *more),
    )
    found = Stage1Judge(stage1).scores(tokens, texts)
    assert asked == [5 + 1 + 2 + 4 + 1]
    assert found[3][0] == found[3][1] != found[3][2]
    assert found[4][1] == found[4][2]


@pytest.mark.parametrize("at_once", [2, 256])
def test_a_picture_is_looked_at_once_for_all_its_texts(stage1, tokens, texts, at_once, monkeypatch):
    seen = []
    keys_values = Attention.keys_values_of_norm

    def counted(self, normed, norm):
        seen.append(len(normed))
        return keys_values(self, normed, norm)

    monkeypatch.setattr(Attention, "keys_values_of_norm", counted)
    Stage1Judge(stage1, at_once).scores(tokens, texts)
    assert seen == [len(tokens)] * 2  # two of the three layers look


def test_no_more_pairs_are_looked_at_than_asked_for(stage1, tokens, texts, monkeypatch):
    asked = []
    logits = stage1.match_logits
    monkeypatch.setattr(
        stage1,
        "match_logits",
        lambda seen, read, *more: asked.append(len(read.ids)) or logits(seen, read, *more),
    )
    Stage1Judge(stage1, 4).scores(tokens, texts)
    assert asked == [4, 4, 4, 1]


def test_nothing_to_judge_is_no_score(stage1, tokens):
    judge = Stage1Judge(stage1)
    assert judge.scores(tokens[:2], [[], []]) == [[], []]
    assert judge.scores(tokens[:0], []) == []
    with pytest.raises(ValueError, match="texts of 1 pictures for 2 pictures"):
        judge.scores(tokens[:2], [["a man"]])


def test_shapes_are_as_written(checked, tiny, tokenizer, tokens, texts):
    module = checked.stage1
    stage1 = module.Stage1(module.QFormerConfig(**vars(tiny())), tokenizer).eval()
    found = checked.judging.Stage1Judge(stage1, 3).scores(tokens, texts)
    assert [len(its) for its in found] == [len(its) for its in texts]
