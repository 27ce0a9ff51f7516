"""Beam search in made-up languages, against every caption there is and a search in lists."""

import math
import random

import pytest
import torch
from torch import Tensor

from model.generation.beams import beam_search

END = 0


class Language:
    """Pictures that give every text logits of its own; knows which texts it was asked about."""

    def __init__(self, num_pictures: int, vocab_size: int, end: float = 0.0) -> None:
        self.vocab_size, self.end = vocab_size, end
        self.texts = [(number, ()) for number in range(num_pictures)]
        self.asked = list(self.texts)
        self.first = self.logits()

    def shares(self, picture: int, words: tuple[int, ...]) -> list[float]:
        """Log-probabilities of the next word."""
        rng = random.Random(str((picture, words)))
        logits = [rng.gauss(0, 1.5) + self.end * (word == END) for word in range(self.vocab_size)]
        total = math.log(sum(map(math.exp, logits)))
        return [one - total for one in logits]

    def logits(self) -> Tensor:
        return torch.tensor([self.shares(*text) for text in self.texts]) + 3.0

    def go_on(self, rows: Tensor, ids: Tensor) -> Tensor:
        before = [self.texts[row] for row in rows.tolist()]
        self.texts = [
            (picture, (*words, word))
            for (picture, words), word in zip(before, ids.tolist(), strict=True)
        ]
        self.asked += self.texts
        return self.logits()


def searched(language: Language, num_tokens: int, num_beams: int, num_best: int):
    found = beam_search(
        language.first,
        language.go_on,
        lambda scores, written: scores,
        end=END,
        num_tokens=num_tokens,
        num_beams=num_beams,
        num_best=num_best,
    )
    return [[(shortened(ids), given) for ids, given in captions] for captions in found]


def shortened(ids: list[int]) -> tuple[int, ...]:
    """Up to the end; what comes after is filling."""
    end = ids.index(END) + 1 if END in ids else len(ids)
    assert set(ids[end:]) <= {END}
    return tuple(ids[:end])


def plain(language: Language, picture: int, num_tokens: int, num_beams: int, num_best: int):
    """One picture, in lists, to the very end: no early stop."""
    running: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    done: list[tuple[tuple[int, ...], float]] = []
    for length in range(1, num_tokens + 1):
        longer = [
            ((*words, word), given + more)
            for words, given in running
            for word, more in enumerate(language.shares(picture, words))
        ]
        longer.sort(key=lambda text: -text[1])
        for words, given in longer[:num_beams]:
            if words[-1] == END or length == num_tokens:
                done.append((words, given))
        running = [text for text in longer if text[0][-1] != END][:num_beams]
    return sorted(done, key=lambda text: -text[1] / len(text[0]))[:num_best]


@pytest.mark.parametrize("end", [-1.0, 0.5, 2.0])
@pytest.mark.parametrize(("vocab_size", "num_tokens"), [(3, 1), (3, 7), (12, 6)])
@pytest.mark.parametrize(("num_beams", "num_best"), [(1, 1), (2, 1), (3, 3), (6, 2)])
def test_a_search_is_the_plain_one(vocab_size, num_tokens, num_beams, num_best, end):
    language = Language(8, vocab_size, end)
    found = searched(language, num_tokens, num_beams, num_best)
    for picture, captions in enumerate(found):
        expected = plain(language, picture, num_tokens, num_beams, num_best)
        assert [words for words, _ in captions] == [words for words, _ in expected]
        for (_, given), (_, other) in zip(captions, expected, strict=True):
            assert given == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize("num_tokens", [1, 2, 4])
def test_wide_enough_a_search_finds_every_caption(num_tokens):
    language = Language(2, 3)
    found = searched(language, num_tokens, 40, 40)
    for picture, captions in enumerate(found):
        every = {(): 0.0}
        whole: dict[tuple[int, ...], float] = {}
        for length in range(1, num_tokens + 1):
            longer = {
                (*words, word): given + more
                for words, given in every.items()
                for word, more in enumerate(language.shares(picture, words))
            }
            ended = {w: s for w, s in longer.items() if w[-1] == END or length == num_tokens}
            whole |= ended
            every = {words: given for words, given in longer.items() if words not in ended}
        ranked = sorted(whole, key=lambda words: -whole[words] / len(words))
        assert [words for words, _ in captions] == ranked


def test_no_text_is_asked_about_twice_and_none_after_its_end():
    language = Language(6, 9, end=1.0)
    searched(language, 8, 4, 2)
    assert len(set(language.asked)) == len(language.asked)
    assert not any(END in words for _, words in language.asked)


def test_a_search_ends_when_nothing_better_can_come_and_no_sooner():
    language, num_tokens = Language(12, 5, end=1.0), 20
    found = searched(language, num_tokens, 3, 1)
    longest = set()
    for picture, ((words, given),) in enumerate(found):
        assert words == plain(language, picture, num_tokens, 3, 1)[0][0]
        asked = [text for number, text in language.asked if number == picture]
        longest.add(max(map(len, asked)))
        for length in range(len(words), max(map(len, asked)) + 1):
            hopes = [total(language, picture, text) for text in asked if len(text) == length]
            assert max(hopes) / num_tokens > given / len(words)
    assert len(longest) > 3
    assert min(longest) < num_tokens - 1


def total(language: Language, picture: int, words: tuple[int, ...]) -> float:
    """Log-probability of a text."""
    return sum(language.shares(picture, words[:place])[word] for place, word in enumerate(words))


def test_what_is_forbidden_is_not_written_and_keeps_its_share():
    language = Language(3, 4)

    def allowed(scores: Tensor, written: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, 2] = -math.inf
        if written.shape[1] < 2:
            scores[:, END] = -math.inf
        return scores

    found = beam_search(
        language.first, language.go_on, allowed, end=END, num_tokens=4, num_beams=9, num_best=9
    )
    for picture, captions in enumerate(found):
        written = [shortened(ids) for ids, _ in captions]
        assert len(set(written)) == len(written) == 9
        assert all(2 not in words and len(words) >= 3 for words in written)
        for words, (_, given) in zip(written, captions, strict=True):
            assert given == pytest.approx(total(language, picture, words), abs=1e-4)


def test_fewer_captions_than_asked_for_are_all_that_there_are():
    found = searched(Language(2, 3), 1, 8, 8)
    assert [len(captions) for captions in found] == [3, 3]
