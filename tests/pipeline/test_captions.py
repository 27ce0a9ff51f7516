"""A caption is normalised once, judged by what is left of it, and never there twice."""

import unicodedata

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.captions import Caption, judge, normalise, unite, web_caption
from pipeline.schemas import CAPTION, KEPT

ANY_TEXT = st.text(st.characters(), max_size=30)  # lone surrogates too
steady = settings(max_examples=200, deadline=None, derandomize=True)


def slow_normalise(text: str) -> str:
    """Character by character: what is no control and no space is kept, one space between."""
    words, word = [], ""
    for char in unicodedata.normalize("NFC", text):
        if char.isspace() or unicodedata.category(char) in ("Cc", "Cs"):
            words.append(word)
            word = ""
        else:
            word += char
    words.append(word)
    return " ".join(word for word in words if word)


@steady
@given(ANY_TEXT)
@example("e\x00\u0301")  # nothing may be composed across what is taken out
@example("\u1e9b\u0323 \u2000\u3000\u0301")
@example("\ud800a\udfff")
def test_normalising_is_what_going_through_the_characters_gives(text):
    assert normalise(text) == slow_normalise(text)


@steady
@given(ANY_TEXT)
def test_normalising_twice_changes_nothing_more(text):
    once = normalise(text)
    assert normalise(once) == once


@steady
@given(ANY_TEXT)
def test_a_normalised_caption_has_no_control_characters_and_no_double_spaces(text):
    normal = normalise(text)
    assert not [c for c in normal if unicodedata.category(c) in ("Cc", "Cs")]
    assert normal == " ".join(normal.split())
    normal.encode()  # it can be stored


def test_scripts_keep_their_joiners_and_their_letters():
    farsi = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
    for text in (farsi, family, "\u05e9\u05dc\u05d5\u05dd", "\u0915\u094d\u200d\u0937"):
        assert normalise(text) == text
    assert normalise("cafe\u0301") == "caf\u00e9"
    assert normalise("\t a \x07\r\n b\x00c ") == "a b c"


@steady
@given(ANY_TEXT | st.sampled_from(["", " ", "\x00", "\u2028\t", "\u3000"]))
def test_exactly_the_captions_that_normalise_to_nothing_are_rejected(text):
    judged = judge(web_caption(text))
    assert judged == Caption(
        text=slow_normalise(text),
        source="web",
        status=KEPT if slow_normalise(text) else "rejected:empty",
    )


def test_judging_keeps_an_earlier_rejection_and_the_source():
    earlier = Caption(text=" a  b", source="stage1", status="rejected:score")
    assert judge(earlier) == Caption(text="a b", source="stage1", status="rejected:score")


def test_a_caption_has_the_fields_of_its_schema():
    assert list(web_caption("a")) == [field.name for field in CAPTION]


@steady
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")), max_size=12))
def test_of_equal_texts_the_first_caption_stays_in_its_place(pairs):
    captions = [Caption(text=text, source=source, status=KEPT) for text, source in pairs]
    expected = []
    for caption in captions:
        if all(caption["text"] != earlier["text"] for earlier in expected):
            expected.append(caption)
    united, num_out = unite(iter(captions))
    assert united == expected
    assert num_out == len(captions) - len(expected)
