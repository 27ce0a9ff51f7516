"""Filters of captions; curate rejects a caption that one of them refuses, and keeps the picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.captions import Caption
from pipeline.filters import Filter, at_least, judged
from pipeline.recurring import counts_of
from pipeline.schemas import KEPT

JUDGED = pa.schema([("text", pa.string()), ("num_pictures", pa.int64())])
"""What caption filters read: a normalised text, and how many pictures have it as a caption."""

# Scripts written without spaces: each of their characters counts as a word.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+"
_PICTURE_FILE = r"jpe?g|png|gif|webp|svgz?|bmp|tiff?|avif|heic|psd|ai|eps|pdf"
_CAMERA = (
    r"img|image|imagen|bild|dsc[nf]?|dscn|pict?|picture|photo|foto|mvi|scan|screenshot|p|untitled"
)
_DOMAIN = r"com|org|net|info|edu|gov|io|co|de|fr|uk|jp|ru|cn|br|it|nl|es|pl"


@dataclass(frozen=True, kw_only=True)
class ShortFilter:
    """Rejects captions of too few words or characters to say anything."""

    reason: ClassVar[str] = "rejected:too_short"

    min_words: int
    """Words at least; in scripts without spaces each character is one."""

    min_chars: int
    """Characters at least."""

    def __post_init__(self) -> None:
        at_least("min_words", self.min_words, 1)
        at_least("min_chars", self.min_chars, 1)

    def refuses(self, table: pa.Table) -> pa.ChunkedArray:
        text = table.column("text")
        return pc.or_(
            pc.less(pc.count_substring_regex(text, _WORD), self.min_words),
            pc.less(pc.utf8_length(text), self.min_chars),
        )


@dataclass(frozen=True, kw_only=True)
class LongFilter:
    """Rejects captions that are whole articles, or lists of keywords."""

    reason: ClassVar[str] = "rejected:too_long"

    max_words: int
    """Words at most; in scripts without spaces each character is one."""

    max_chars: int
    """Characters at most."""

    def __post_init__(self) -> None:
        at_least("max_words", self.max_words, 1)
        at_least("max_chars", self.max_chars, 1)

    def refuses(self, table: pa.Table) -> pa.ChunkedArray:
        text = table.column("text")
        return pc.or_(
            pc.greater(pc.count_substring_regex(text, _WORD), self.max_words),
            pc.greater(pc.utf8_length(text), self.max_chars),
        )


@dataclass(frozen=True, kw_only=True)
class LettersFilter:
    """Rejects captions that are mostly numbers, signs or emoji."""

    reason: ClassVar[str] = "rejected:few_letters"

    min_share: float
    """Share of letters and their marks, of any script, among the characters but spaces, 0 to 1."""

    def __post_init__(self) -> None:
        at_least("min_share", self.min_share, 0)

    def refuses(self, table: pa.Table) -> pa.ChunkedArray:
        text = table.column("text")
        letters = pc.count_substring_regex(text, r"[\p{L}\p{M}]")
        signs = pc.count_substring_regex(text, r"\S")
        return pc.less(pc.cast(letters, pa.float64()), pc.multiply(signs, self.min_share))


@dataclass(frozen=True, kw_only=True)
class FileNameFilter:
    """Rejects names of files: `IMG_1234`, `holiday-2.jpg`, `0a4f...`."""

    reason: ClassVar[str] = "rejected:file_name"

    def refuses(self, table: pa.Table) -> pa.ChunkedArray:
        return _any_matches(
            table.column("text"),
            rf"(?i)^[^.!?]*[^\s.]\.({_PICTURE_FILE})$",  # one ending; a sentence has more to it
            rf"(?i)^({_CAMERA})[\s_-]*\(?\d+([\s_x-]*\d+)*\)?$",
            r"(?i)^[0-9a-f]{8,}([-_]?[0-9a-f]{4,})*$",
            r"^\S*[_/\\]\S*\d\S*$",
        )


@dataclass(frozen=True, kw_only=True)
class UrlFilter:
    """Rejects addresses: captions that are one, or that hold one."""

    reason: ClassVar[str] = "rejected:url"

    anywhere: bool
    """Whether one address among other words is enough."""

    def refuses(self, table: pa.Table) -> pa.ChunkedArray:
        address = rf"(?:https?://\S+|www\.\S+|[\w.-]+\.(?:{_DOMAIN})(?:/\S*)?)"
        whole = rf"(?i)^{address}$"
        return _any_matches(
            table.column("text"), rf"(?i)(?:^|[\s(]){address}" if self.anywhere else whole
        )


_WHOLE_BOILERPLATE = (
    r"(image|picture|photo|photograph|pic|icon|logo|thumbnail|thumb|placeholder|banner|avatar"
    r"|untitled|no title|no name|no description|description|unknown|n/?a|none|null|undefined|test"
    r"|default|loading|advertisement|click here|read more|enter a caption|image \d+ of \d+"
    r"|(no|missing) (image|picture|photo)( available)?|(image|photo) (not|un)available)"
)
_ANY_BOILERPLATE = (
    r"(click (here |on (the|this) )?(image |picture |photo )?(to|for) (enlarge|zoom|view|see|more)"
    r"|all rights reserved|\bcopyright (19|20)\d\d|stock (photo|image|vector|illustration)s?\b"
    r"|image may contain|skip to (main )?content|javascript|default (image|avatar)"
    r"|(view|see) larger|(photo|image) gallery)"
)


@dataclass(frozen=True, kw_only=True)
class BoilerplateFilter:
    """Rejects what pages say of any picture: `click to enlarge`, `untitled`, `stock photo`."""

    reason: ClassVar[str] = "rejected:boilerplate"

    def refuses(self, table: pa.Table) -> pa.ChunkedArray:
        return _any_matches(
            table.column("text"),
            rf"(?i)^[\s\W]*{_WHOLE_BOILERPLATE}[\s\W\d]*$",
            rf"(?i){_ANY_BOILERPLATE}",
        )


@dataclass(frozen=True, kw_only=True)
class RecurringFilter:
    """Rejects captions that many pictures have, and so tell none of them apart."""

    reason: ClassVar[str] = "rejected:recurring"

    max_pictures: int
    """Different pictures that may have the same caption, over all that is curated at once."""

    def __post_init__(self) -> None:
        at_least("max_pictures", self.max_pictures, 1)

    def refuses(self, table: pa.Table) -> pa.ChunkedArray:
        return pc.greater(table.column("num_pictures"), self.max_pictures)


CAPTION_FILTERS: dict[str, tuple[Filter, ...]] = {
    "none": (),
    "default": (
        UrlFilter(anywhere=False),
        FileNameFilter(),
        BoilerplateFilter(),
        ShortFilter(min_words=1, min_chars=2),
        LongFilter(max_words=256, max_chars=2000),
        LettersFilter(min_share=0.5),
        RecurringFilter(max_pictures=50),
    ),
    "strict": (  # lengths and recurrence of ALIGN (Jia et al. 2021, section 3)
        UrlFilter(anywhere=True),
        FileNameFilter(),
        BoilerplateFilter(),
        ShortFilter(min_words=3, min_chars=6),
        LongFilter(max_words=64, max_chars=500),
        LettersFilter(min_share=0.7),
        RecurringFilter(max_pictures=10),
    ),
}
"""The named sets; a caption has the reason of the first that refuses it."""


def filter_captions(
    captions: Sequence[Sequence[Caption]], filters: Sequence[Filter], recurring: pa.Table
) -> list[list[Caption]]:
    """The captions of each picture, those rejected that a filter refuses.

    Args:
        captions: of each picture, normalised; those that are rejected already stay so.
        filters: the first that refuses a caption gives its status.
        recurring: `recurring.RECURRING`; captions that are not there are counted as of one picture.
    """
    texts = [caption["text"] for row in captions for caption in row if caption["status"] == KEPT]
    columns = [pa.array(texts, pa.string()), pa.array(counts_of(texts, recurring))]
    statuses = iter(judged(pa.table(columns, schema=JUDGED), filters, KEPT))
    return [
        [
            Caption(**{**caption, "status": next(statuses)})
            if caption["status"] == KEPT
            else caption
            for caption in row
        ]
        for row in captions
    ]


def max_pictures(filters: Sequence[Filter]) -> int | None:
    """The bound of the `RecurringFilter` among them, or None without one."""
    bounds = [each.max_pictures for each in filters if isinstance(each, RecurringFilter)]
    return min(bounds, default=None)


def _any_matches(text: pa.ChunkedArray, *patterns: str) -> pa.ChunkedArray:
    found = pc.match_substring_regex(text, patterns[0])
    for pattern in patterns[1:]:
        found = pc.or_(found, pc.match_substring_regex(text, pattern))
    return found
