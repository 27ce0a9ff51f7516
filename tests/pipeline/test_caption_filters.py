"""Caption filters refuse what says nothing of its picture, and nothing else, in any script."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.caption_filters import (
    CAPTION_FILTERS,
    JUDGED,
    BoilerplateFilter,
    FileNameFilter,
    LettersFilter,
    LongFilter,
    RecurringFilter,
    ShortFilter,
    UrlFilter,
    filter_captions,
    max_pictures,
)
from pipeline.captions import MAX_CHARS, bounded, judge, web_caption
from pipeline.errors import ConfigError
from pipeline.filters import judged
from pipeline.recurring import RECURRING, text_digest
from pipeline.schemas import KEPT

GOOD = [
    "A frog.",
    "a cat",
    "Lemon SVG theme",
    "card",
    "Fiets",
    "a picture of 3 dogs",
    "Photo of the harbour at night",
    "Windows 95 logo on a box",
    "hill - RPG map elements",
    "Don't stop. A sign in St. Ives",
    "An image of the node.js logo",
    "Mother/child",
    "Boeing 747 over London",
    "tiny.cat",
    "\u4e00\u53ea\u732b",  # "a cat", in Chinese
    "\u0643\u0644\u0628 \u0648\u0642\u0637\u0629",  # "a dog and a cat", in Arabic
    "\u092c\u093f\u0932\u094d\u0932\u0940",  # "cat", in Hindi: letters with marks
    "\u0e41\u0e21\u0e27",  # "cat", in Thai
    "\u041a\u043e\u0442 \u043d\u0430 \u043e\u043a\u043d\u0435",
]
BAD = {
    "rejected:file_name": [
        "IMG_1234",
        "img 1234",
        "DSC00012",
        "dscn-0007",
        "Photo (3)",
        "screenshot 2021-03-04",
        "holiday-2.jpg",
        "My holiday in Rome.JPEG",
        "0a4f33bc91de",
        "8c9a1e2b-4f33-4bc9-91de-aabbccddeeff",
        "book_01",
        "uploads/2014/cat",
    ],
    "rejected:url": [
        "http://example.com/cat",
        "https://a.b/c?d=e",
        "www.example.com",
        "example.com",
        "shop.example.co.uk/item",
    ],
    "rejected:boilerplate": [
        "Click to enlarge",
        "click here to view larger",
        "untitled",
        "Photo",
        "[image]",
        "no image available",
        "image 3 of 500",
        "Stock Photo of a cat",
        "(c) 2010. All rights reserved",
        "Image may contain: 1 person",
        "N/A",
    ],
    "rejected:too_short": ["x", "?"],
    "rejected:few_letters": ["1 2 3 4 5 a", "*** !!! ***", "\U0001f600\U0001f600\U0001f600", "50%"],
    "rejected:too_long": ["word " * 257, "w" * 2001, "\u732b" * 257],
}
CASES = [(reason, text) for reason, texts in BAD.items() for text in texts]


def table(*texts: str, num_pictures: int = 1) -> pa.Table:
    return pa.table([pa.array(texts, pa.string()), [num_pictures] * len(texts)], schema=JUDGED)


def refused(each, *texts: str) -> list[bool]:
    return each.refuses(table(*texts)).to_pylist()


@pytest.mark.parametrize("text", GOOD)
def test_a_caption_that_says_something_is_kept(text):
    assert judged(table(text), CAPTION_FILTERS["default"], KEPT) == [KEPT]


@pytest.mark.parametrize(("reason", "text"), CASES)
def test_a_caption_that_says_nothing_is_rejected_with_its_reason(reason, text):
    assert judged(table(text), CAPTION_FILTERS["default"], KEPT) == [reason]
    assert judged(table(text), CAPTION_FILTERS["none"], KEPT) == [KEPT]


def test_the_strict_set_rejects_whatever_the_default_does():
    texts = [text for _, text in CASES]
    assert KEPT not in judged(table(*texts), CAPTION_FILTERS["strict"], KEPT)


def test_lengths_are_counted_in_words_and_characters_and_the_bounds_are_kept():
    short = ShortFilter(min_words=3, min_chars=6)
    assert refused(short, "a b c d", "ab cd e", "aaaaa bbbbb", "a b c") == [
        False,
        False,
        True,
        True,
    ]
    assert refused(short, "\u4e00\u53ea\u732b\u5728\u7a97\u53f0", "\u732b\u732b\u732b") == [
        False,
        True,
    ]
    long = LongFilter(max_words=3, max_chars=10)
    assert refused(long, "a b c", "a b c d", "a" * 10, "a" * 11) == [False, True, False, True]
    assert refused(long, "\u732b" * 3, "\u732b" * 4, "\u732bcat\u732b") == [False, True, False]


def test_letters_are_counted_without_the_spaces():
    half = LettersFilter(min_share=0.5)
    assert refused(half, "ab 12", "a 12", "ab    12", "\u0915\u094d\u0937 123") == [0, 1, 0, 0]


def test_an_address_among_words_is_refused_where_it_is_asked_for():
    texts = ["a cat (http://a.b/c)", "a cat from example.com", "a cat. In front", "http://a.b"]
    assert refused(UrlFilter(anywhere=True), *texts) == [True, True, False, True]
    assert refused(UrlFilter(anywhere=False), *texts) == [False, False, False, True]


def test_captions_of_more_pictures_than_the_bound_are_refused():
    each = RecurringFilter(max_pictures=2)
    assert each.refuses(table("a", num_pictures=2)).to_pylist() == [False]
    assert each.refuses(table("a", num_pictures=3)).to_pylist() == [True]
    assert max_pictures([UrlFilter(anywhere=False), each]) == 2
    assert max_pictures([UrlFilter(anywhere=False)]) is None


def test_captions_are_judged_in_their_places_and_earlier_rejections_stay():
    earlier = {"text": "http://a.b", "source": "web", "status": "rejected:empty"}
    captions = [
        [web_caption("a cat"), earlier, web_caption("IMG_1")],
        [],
        [web_caption("gramastar")],
    ]
    often = pa.table([[text_digest("gramastar")], [51]], schema=RECURRING)
    found = filter_captions(captions, CAPTION_FILTERS["default"], often)
    assert [[c["status"] for c in row] for row in found] == [
        [KEPT, "rejected:empty", "rejected:file_name"],
        [],
        ["rejected:recurring"],
    ]
    assert [[c["text"] for c in row] for row in found] == [[c["text"] for c in r] for r in captions]


ANY_TEXT = st.text(st.characters(), max_size=60) | st.sampled_from(
    ["", "\x00" * 9, "a" * (1 << 20), "\u0301" * 9, "\u202e\u202dabc", "\ud800", " \u3000 " * 9]
)


@given(st.lists(st.lists(ANY_TEXT, max_size=4), max_size=5))
@pytest.mark.parametrize("name", CAPTION_FILTERS)
def test_any_caption_of_any_script_ends_kept_or_rejected_and_bounded(name, rows):
    captions = [[judge(web_caption(bounded(text))) for text in row] for row in rows]
    found = filter_captions(captions, CAPTION_FILTERS[name], RECURRING.empty_table())
    assert [len(row) for row in found] == [len(row) for row in rows]
    for row, texts in zip(found, rows, strict=True):
        for caption, text in zip(row, texts, strict=True):
            assert caption["status"] == KEPT or caption["status"].startswith("rejected:")
            assert len(caption["text"]) <= MAX_CHARS
            caption["text"].encode()
            if len(text) > MAX_CHARS:
                assert caption["status"] == "rejected:too_long"


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: ShortFilter(min_words=0, min_chars=1),
        lambda: ShortFilter(min_words=1, min_chars=0),
        lambda: LongFilter(max_words=0, max_chars=1),
        lambda: LongFilter(max_words=1, max_chars=0),
        lambda: LettersFilter(min_share=-0.1),
        lambda: RecurringFilter(max_pictures=0),
    ],
)
def test_numbers_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"\w+: \S+ is less than"):
        wrong()


def test_filters_without_numbers_are_plain_questions():
    assert refused(FileNameFilter(), "a.png", "a cat") == [True, False]
    assert refused(BoilerplateFilter(), "untitled 3", "a cat") == [True, False]
