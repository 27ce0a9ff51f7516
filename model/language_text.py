"""Captions and prompts as a language model's tokens: what it reads, what it learns to write.

A decoder-only model reads [prompt, caption, end] and learns the caption and its end. An
encoder-decoder learns prefix language modelling (BLIP-2, section 3.3): its encoder reads the prompt
and the first words of the caption, its decoder writes the rest. The paper leaves open where a
caption is split; its author answered (LAVIS, issue 139): at random, from position 1 to the middle.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from model.pretrained.language import LanguageModel
from pipeline.errors import ConfigError

CAPTION_PROMPT = "a photo of"
"""What captions begin with where a model was trained on a part of each."""

QUESTION_PROMPT = "Question: {} Answer:"
"""What an answer follows; the question goes into the braces."""

IGNORED = -100
"""A target that counts for nothing, as in PyTorch."""

LanguageBatch = tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"], Int[Tensor, "B S"]]
"""Ids that are read, which of them are no padding, and targets (see `Stage2Batch`)."""


def caption_prompt(language: LanguageModel, trained: str) -> str:
    """What captions go on from.

    Args:
        language: the model that writes them.
        trained: the prompt while it trained; without one the encoder of an encoder-decoder has
            always read the beginning of a caption.
    """
    return CAPTION_PROMPT if language.is_encoder_decoder and not trained else trained


def prompt_ids(language: LanguageModel, prompt: str) -> list[int]:
    """What a model reads before it writes: its tokenizer's beginning of any text, and the prompt.

    A decoder goes on from it, so no end follows; an encoder has read a text, which its tokenizer
    ends (T5's does), as in the reference.
    """
    _, after = _around(language)
    return [*_first(language, prompt), *(after if language.is_encoder_decoder else [])]


def caption_room(language: LanguageModel, prompt: str, max_tokens: int) -> int:
    """Tokens that are left for a caption between the prompt and the end token.

    Raises:
        ConfigError: none are.
    """
    room = max_tokens - len(_first(language, prompt)) - 1
    if room < 1:
        raise ConfigError(
            f"max_language_tokens: {max_tokens} leaves no room for a caption after the prompt"
        )
    return room


def check_positions(language: LanguageModel, num_queries: int, num_tokens: int, field: str) -> None:
    """Check that the soft prompt and text fit into the model.

    Args:
        language: that has so many positions.
        num_queries: Q
        num_tokens: of the text, prompt included, at most.
        field: the option that decides how many.

    Raises:
        ConfigError: they do not fit.
    """
    limit = language.max_positions
    if limit is not None and num_queries + num_tokens > limit:
        raise ConfigError(
            f"{field}: {num_queries} queries and {num_tokens} tokens of text are more than the "
            f"{limit} positions of {language.name}"
        )


def language_batch(
    language: LanguageModel,
    texts: Sequence[str],
    *,
    prompt: str,
    max_tokens: int,
    split_draw: Sequence[float],
) -> LanguageBatch:
    """What the language model reads of captions, and what it is to write.

    A caption that is too long is cut, and its end is then not learned: nobody is to learn to stop
    in the middle of a sentence.

    Args:
        language: whose tokenizer is used.
        texts: captions.
        prompt: stands before each, and is not learned.
        max_tokens: of prompt, caption and end token together, at most.
        split_draw: a number in [0, 1) for each caption, which draws where it is split between
            encoder and decoder; a decoder-only model splits nothing.

    Raises:
        ConfigError: the prompt leaves no room.
    """
    room = caption_room(language, prompt, max_tokens)
    first = _first(language, prompt)
    space = " " if prompt.strip() else ""
    captions = [_words(language, space + text) for text in texts]
    rows = [(its[:room], language.end if len(its) <= room else IGNORED) for its in captions]
    if language.is_encoder_decoder:
        _, after = _around(language)
        least = 0 if space else 1  # a prompt is the first words already
        splits = [_split(len(its), least, u) for (its, _), u in zip(rows, split_draw, strict=True)]
        both = list(zip(rows, splits, strict=True))
        read = [[*first, *its[:at], *after] for (its, _), at in both]
        learned = [[*its[at:], end] for (its, end), at in both]
    else:
        read = [[*first, *its, language.end] for its, _ in rows]
        learned = [[*[IGNORED] * len(first), *its, end] for its, end in rows]
    ids = _padded(read, language.end)
    lengths = torch.tensor([len(row) for row in read])
    return ids, torch.arange(ids.shape[1]) < lengths[:, None], _padded(learned, IGNORED)


def _first(language: LanguageModel, prompt: str) -> list[int]:
    """What stands before any caption; the space after the prompt belongs to the next word."""
    before, _ = _around(language)
    return [*before, *_words(language, prompt.rstrip())]


def _split(num_words: int, least: int, uniform: float) -> int:
    """Words that the encoder reads: from `least` to half of them, but never all."""
    least = min(least, num_words - 1) if num_words else 0
    return least + int(uniform * (max(least, num_words // 2) - least + 1))


def _words(language: LanguageModel, text: str) -> list[int]:
    return list(language.tokenizer(text, add_special_tokens=False)["input_ids"])


def _around(language: LanguageModel) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after any text."""
    word = _words(language, "a")
    whole = list(language.tokenizer("a")["input_ids"])
    at = next(at for at in range(len(whole)) if whole[at : at + len(word)] == word)
    return whole[:at], whole[at + len(word) :]


def _padded(rows: Sequence[Sequence[int]], value: int) -> Int[Tensor, "B W"]:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])
