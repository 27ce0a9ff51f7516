"""CIDEr and BLEU-4 of captions, by the libraries whose numbers papers give.

CIDEr is pycocoevalcap's, the scorer of the COCO captioning challenge (CIDEr-D); BLEU-4 is
sacreBLEU's, over all pictures, with the closest reference length and without smoothing. Words come
of NLTK's Treebank tokenizer where the challenge has Stanford's, which needs Java: both follow the
Penn Treebank, and punctuation counts as no word in either.
"""

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from indexes.intervals import RESAMPLES, Estimate, bootstrap
from pipeline.errors import ConfigError

_PUNCTUATION = frozenset(
    [
        *("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-"),
        *(".", "?", "!", ",", ":", "-", "--", "...", ";"),
    ]
)
"""What the challenge leaves out of captions."""
_SENTENCE_ENDS = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class CaptionScores:
    """How alike captions are to their references."""

    cider: Estimate
    """CIDEr-D, times 100 as in papers; it may be over 100."""
    bleu_4: Estimate
    """In percent."""

    def to_json(self) -> dict[str, Any]:
        return {"cider": self.cider.to_json(), "bleu_4": self.bleu_4.to_json()}


def words_of(text: str) -> str:
    """The words of a caption, in small letters, with spaces between.

    Raises:
        ConfigError: NLTK is not installed.
    """
    split = _load("nltk.tokenize", "TreebankWordTokenizer")().tokenize
    # Its tokenizer takes a full stop off at the very end alone.
    words = [
        word
        for sentence in _SENTENCE_ENDS.split(text)
        for word in split(sentence, convert_parentheses=True)
    ]
    return " ".join(word.lower() for word in words if word not in _PUNCTUATION)


def caption_scores(
    written: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> CaptionScores:
    """Score captions against those that came with their pictures.

    How much a word weighs in CIDEr follows from all these references, so that scores of other
    pictures do not compare. Intervals are 95% by bootstrap over pictures.

    Args:
        written: one caption of each picture.
        references: the captions of each picture, one at least.
        resamples: how often as many pictures are drawn with replacement; two at least.
        seed: of the draws.

    Raises:
        ConfigError: there are fewer than two pictures, no reference has a word, or a library is
            not installed.
    """
    captions = [words_of(text) for text in written]
    truths = [[words_of(text) for text in its] for its in references]
    if len(captions) < 2:
        raise ConfigError(f"{len(captions)} captions: CIDEr weighs words over two pictures or more")
    if not any(any(its) for its in truths):
        raise ConfigError("no caption of these pictures has a word")
    cider = _ciders(captions, truths)[:, None]
    share, *_ = bootstrap(100 * cider, np.ones_like(cider), resamples=resamples, seed=seed)
    return CaptionScores(share, _bleu_4(captions, truths, resamples, seed))


def _ciders(captions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """float64[N]: of each picture; their mean is CIDEr."""
    scorer = _load("pycocoevalcap.cider.cider_scorer", "CiderScorer")(n=4, sigma=6.0)
    for caption, its in zip(captions, references, strict=True):
        scorer += (caption, list(its))
    _, scores = scorer.compute_score()
    return np.asarray(scores, np.float64)


def _bleu_4(
    captions: Sequence[str], references: Sequence[Sequence[str]], resamples: int, seed: int
) -> Estimate:
    """BLEU-4 of all captions together, in percent."""
    bleu = _load("sacrebleu.metrics", "BLEU")
    scorer = bleu(tokenize="none", smooth_method="none", force=True)
    each = [
        scorer.corpus_score([caption], [[reference] for reference in its])
        for caption, its in zip(captions, references, strict=True)
    ]
    sums = np.array([[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in each])

    def score(counts: np.ndarray) -> float:
        *both, written, wanted = counts.tolist()
        found = bleu.compute_bleu(both[:4], both[4:], written, wanted, smooth_method="none")
        return float(found.score)

    dice = np.random.default_rng(seed)
    chances = np.full(len(sums), 1 / len(sums))
    drawn = [score(dice.multinomial(len(sums), chances) @ sums) for _ in range(resamples)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(score(sums.sum(axis=0)), float(low), float(high))


def _load(module: str, name: str) -> Any:
    """Something of a library that comes with `viaduct[captions]` alone."""
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError:
        raise ConfigError(
            f"captions are scored by {module.partition('.')[0]}, which is not installed: "
            "pip install 'viaduct[captions]'"
        ) from None
