"""Captions as numbers: BERT's tokenizer with [DEC], the start of a caption to be written."""

import json
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoTokenizer

from model.pretrained.hub import text_folder
from pipeline.errors import ConfigError, DatasetError, first_line

PAD, UNKNOWN, CLS, SEP, MASK, DEC = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"


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
