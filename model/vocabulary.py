"""A vocabulary of word pieces learned from captions, for a start from scratch."""

from collections import Counter
from collections.abc import Iterable
from itertools import islice

from tokenizers import BertWordPieceTokenizer, Tokenizer
from tokenizers.processors import TemplateProcessing

from model.tokenizer import CLS, MASK, PAD, SEP, UNKNOWN, CaptionTokenizer

_LEARNED_FROM = 1_000_000
"""Captions that a vocabulary is learned from, at most."""


def learned_tokenizer(texts: Iterable[str], vocab_size: int) -> CaptionTokenizer:
    """WordPieces learned from captions, lower case, for a start from scratch.

    Args:
        texts: captions to learn from.
        vocab_size: V at most, special tokens included.
    """
    special = [PAD, UNKNOWN, CLS, SEP, MASK]
    learner = BertWordPieceTokenizer(lowercase=True)
    split = [_words(learner, text) for text in islice(texts, _LEARNED_FROM)]
    letters = _letters(split, at_most=(vocab_size - len(special) - 1) // 4)
    known = set(letters)
    learner.train_from_iterator(
        (" ".join(word for word in words if known.issuperset(word)) for words in split),
        vocab_size=vocab_size - 1,  # [DEC] comes on top
        min_frequency=1,
        limit_alphabet=vocab_size,
        show_progress=False,
        # Left to itself the learner numbers letters by chance, which decides between pieces.
        special_tokens=[*special, *letters, *(f"##{letter}" for letter in letters)],
    )
    learned = BertWordPieceTokenizer(vocab=learner.get_vocab(), lowercase=True)
    tokenizer = Tokenizer.from_str(learned.to_str())
    tokenizer.post_processor = TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        special_tokens=[(t, tokenizer.token_to_id(t)) for t in (CLS, SEP)],
    )
    return CaptionTokenizer(tokenizer)


def _words(learner: BertWordPieceTokenizer, text: str) -> list[str]:
    text = learner.normalizer.normalize_str(text)
    return [word for word, _ in learner.pre_tokenizer.pre_tokenize_str(text)]


def _letters(split: Iterable[Iterable[str]], at_most: int) -> list[str]:
    """The most frequent letters, sorted."""
    counts = Counter(letter for words in split for word in words for letter in word)
    return sorted(sorted(counts, key=lambda letter: (-counts[letter], letter))[:at_most])
