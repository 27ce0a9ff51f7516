"""Captions that are surely in another language are rejected, in any script."""

import sys

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import languages
from pipeline.caption_filters import JUDGED
from pipeline.errors import ConfigError
from pipeline.languages import LanguageFilter

ENGLISH = [
    "A frog.",
    "a cat on a mat",
    "A man riding a wave on top of a surfboard.",
    "Two children are playing with a red ball in the garden",
]
FOREIGN = [
    "Ein Hund liegt auf der Wiese und schl\u00e4ft",  # German
    "Une voiture rouge devant la maison de ma grand-m\u00e8re",  # French
    "\u041a\u043e\u0448\u043a\u0430 \u0441\u0438\u0434\u0438\u0442",
    "\u4e00\u53ea\u732b\u5750\u5728\u7a97\u53f0\u4e0a",
    "\u0642\u0637\u0629 \u0639\u0644\u0649 \u0627\u0644\u0646\u0627\u0641\u0630\u0629",
]


def refused(each: LanguageFilter, *texts: str) -> list[bool]:
    table = pa.table([pa.array(texts, pa.string()), [1] * len(texts)], schema=JUDGED)
    return each.refuses(table).to_pylist()


def test_captions_in_other_languages_are_refused():
    english = LanguageFilter(languages=("en",))
    assert refused(english, *ENGLISH) == [False] * len(ENGLISH)
    assert refused(english, *FOREIGN) == [True] * len(FOREIGN)
    both = LanguageFilter(languages=("de", "en"))
    assert refused(both, *ENGLISH, *FOREIGN) == [False] * 5 + [True] * 4


@given(st.lists(st.text(max_size=40) | st.just("w " * 5000), max_size=4))
def test_any_text_has_an_answer(texts):
    everything = LanguageFilter(languages=("en",), min_probability=0.0)
    assert refused(everything, *texts) == [False] * len(texts)
    assert len(refused(LanguageFilter(languages=("en",)), *texts)) == len(texts)


def test_wrong_languages_and_probabilities_are_told_with_what_there_is():
    with pytest.raises(ConfigError, match=r"languages: 'english' is none of .* en "):
        LanguageFilter(languages=("en", "english"))
    with pytest.raises(ConfigError, match="min_probability: 2 is not between 0 and 1"):
        LanguageFilter(languages=("en",), min_probability=2)


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    languages._identifier.cache_clear()
    monkeypatch.setitem(sys.modules, "py3langid", None)
    with pytest.raises(ConfigError, match=r"pip install 'viaduct\[language\]'"):
        LanguageFilter(languages=("en",))
