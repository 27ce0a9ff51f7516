"""A vocabulary that is learned depends on the captions alone, and fits them."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from model.vocabulary import learned_tokenizer


def words(count: int) -> list[str]:
    """Captions of made-up words, among whose pieces there are many ties."""
    rng = random.Random(0)
    known = ["".join(rng.choices("abcdefghij", k=rng.randint(1, 7))) for _ in range(count)]
    return [" ".join(rng.choices(known, k=6)) for _ in range(count)]


def learned_elsewhere(hash_seed: int, vocab_size: int) -> str:
    """The vocabulary as another process learns it."""
    code = "import sys; from model.vocabulary import learned_tokenizer; "
    code += f"print(learned_tokenizer(sys.stdin.read().split(';'), {vocab_size}).to_json(), end='')"
    return subprocess.run(
        [sys.executable, "-c", code],
        input=";".join(words(300)),
        env=os.environ
        | {"PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout


def test_a_vocabulary_is_a_function_of_the_captions():
    first = learned_tokenizer(words(300), 200)
    assert len(first) > 100
    assert first.to_json() == learned_tokenizer(iter(words(300)), 200).to_json()
    assert first.to_json() == learned_elsewhere(7, 200)


def many_letters() -> list[str]:
    """Captions in several scripts, with more letters than a small vocabulary has room for."""
    return [f"{chr(0x4E00 + n)} {chr(0x430 + n % 32)}{chr(0x5D0 + n % 27)}" for n in range(1200)]


@pytest.mark.parametrize(
    ("texts", "vocab_size"),
    [(words(200), 64), (words(200), 150), (many_letters(), 64), (many_letters(), 1500)],
)
def test_a_vocabulary_is_no_larger_than_asked(texts, vocab_size):
    tokenizer = learned_tokenizer(texts, vocab_size)
    assert vocab_size / 3 < len(tokenizer) <= vocab_size
    ids, _ = tokenizer.encode(texts, 60)
    assert ids.max() < vocab_size
    assert tokenizer.dec == len(tokenizer) - 1


def test_frequent_words_become_one_token():
    tokenizer = learned_tokenizer(["the boat", "the dog", "a lighthouse"] * 3, 80)
    ids, _ = tokenizer.encode(["THE boat"], 9)
    assert ids.shape == (1, 4)


def test_any_script_can_be_learned():
    texts = [
        "\u043a\u043e\u0442 \u043d\u0430 \u0441\u0442\u043e\u043b\u0435",  # Cyrillic
        "\u4e00\u53ea\u732b",  # Chinese: every character is a word
        "\u0642\u0637\u0629 \u0635\u063a\u064a\u0631\u0629",  # Arabic
        "Caf\u00e9 na\u00efve",  # accents go, as in BERT
    ]
    tokenizer = learned_tokenizer(texts, 200)
    ids, _ = tokenizer.encode(texts, 60)
    assert tokenizer.encode(["\u0e41"], 9)[0][0, 1] == 1  # Thai was not among them
    assert not (ids == 1).any()
    assert [tokenizer.decode(row) for row in ids.tolist()] == [
        texts[0],
        " ".join(texts[1]),
        texts[2],
        "cafe naive",
    ]


@pytest.mark.parametrize("texts", [[], [""]])
def test_nothing_can_be_learned_from_nothing(texts):
    tokenizer = learned_tokenizer(texts, 64)
    assert len(tokenizer) == 6
    assert tokenizer.encode(["boat"], 9)[0].tolist() == [[2, 1, 3]]
