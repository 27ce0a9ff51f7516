"""Quotes are followed as Arrow's reader does, and one that nothing closes is named by its place."""

import io

import pyarrow as pa
import pyarrow.csv
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.csv_quotes import QuotedValues

BOM = b"\xef\xbb\xbf"


def followed(*chunks: bytes) -> QuotedValues:
    quotes = QuotedValues(",")
    for chunk in filter(None, chunks):
        quotes.follow(chunk)
    quotes.end()
    return quotes


def swallows(content: bytes) -> bool:
    """Whether Arrow's reader takes a row that is added for a part of the last value."""
    rows = []

    def note(row: pa.csv.InvalidRow) -> str:
        rows.append(row.text)
        return "skip"

    options = pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=note)
    pa.csv.read_csv(io.BytesIO(content + b"\nEND\n"), parse_options=options)
    return "END" not in rows


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    header=st.sampled_from([b"a,b\n", BOM + b"a,b\r\n", BOM + b'"a\r""",b\r']),
    rows=st.text(alphabet='"",\n\ra', max_size=14),
    place=st.integers(4, 20),
)
def test_a_quote_is_open_at_the_end_where_it_is_to_arrow(header, rows, place):
    content = header + rows.encode()
    try:
        followed(content[:place], content[place:])
    except ValueError:
        assert swallows(content)
    else:
        assert not swallows(content)


def test_the_quote_is_named_by_its_line_and_byte():
    content = b'url,caption\r\nu,"two\nlines"\nv,no "quote\nw,"a ""cat""\nx,y\n'
    named = r"^the quote in line 5, byte 41, is never closed$"
    assert content[41:48] == b'"a ""ca'
    for place in range(len(content)):
        with pytest.raises(ValueError, match=named):
            followed(content[:place], content[place:])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(rows=st.text(alphabet='"",\n\ra', max_size=14), place=st.integers(4, 20))
def test_no_row_is_cut_where_one_is_said_to_end(rows, place):
    content = b"a,b\n" + rows.encode()
    quotes = QuotedValues(",")
    end = quotes.follow(content[:place])
    assert not swallows(content[:end])
    assert content[:end][-1:] in (b"\n", b"\r")
    assert quotes.open_quote or not set(b"\n\r") & set(content[end:place])


@pytest.mark.parametrize(
    ("rows", "doubtful"),
    [
        (b'u,"' + b"line\n" * 99 + b'"\n', 0),
        (b'u,"' + b"line\n" * 100 + b'"\n', 1),
        (b'u,"two\nlines"\nv,"three\n\n"\n', 0),
        (b'u,"one" and more\nv,x\n', 0),
        (b'u,"a cat\nv,"a dog"\nw,x\n', 1),  # the second row is lost in the first
        (b'u,"a cat\nv,"a dog"\nw,"a\nx,"y"', 2),
    ],
)
def test_values_that_may_have_swallowed_rows_are_counted(rows, doubtful):
    quotes = followed(b"url,caption\n\n", rows)
    assert (quotes.num_doubtful, quotes.first_doubtful_line) == (doubtful, 3 * bool(doubtful))
    for place in range(len(rows)):
        quotes = followed(b"url,caption\n\n" + rows[:place], rows[place:])
        assert (quotes.num_doubtful, quotes.first_doubtful_line) == (doubtful, 3 * bool(doubtful))
