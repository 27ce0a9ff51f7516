"""Cells of whatever type and content become rows: a caption is bounded, never a crash."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.captions import MAX_CHARS
from pipeline.extra import extra_column
from pipeline.schemas import SOURCE
from pipeline.source_rows import caption_list, is_null, source_rows, text
from pipeline.uids import uid_of_url

CELL = st.none() | st.text(st.characters()) | st.binary() | st.integers() | st.floats()
ANY_CELL = CELL | st.lists(CELL, max_size=4) | st.just("w" * (1 << 20))


@given(st.lists(st.tuples(CELL, ANY_CELL), max_size=6))
def test_any_cells_become_rows_of_the_schema(cells):
    locations = [text(location) for location, _ in cells]
    captions = [caption_list(cell) for _, cell in cells]
    table = source_rows(locations, captions, uid_of_url)
    assert table.schema.equals(SOURCE)
    table.validate(full=True)
    assert table.num_rows == len(cells)
    for (_, cell), stored in zip(cells, table.column("captions").to_pylist(), strict=True):
        count = 0 if is_null(cell) else len(cell) if isinstance(cell, list) else 1
        assert len(stored) == count
        assert all(len(caption) <= MAX_CHARS + 1 for caption in stored)


def test_nulls_and_bytes_are_texts_where_they_can_be():
    assert caption_list(None) == []
    assert caption_list([None, b"a\xff", "b\ud800"]) == ["", "a\ufffd", "b?"]
    table = source_rows(["http://a"], [["w" * (MAX_CHARS + 9), "short"]], uid_of_url)
    assert [len(t) for t in table.column("captions")[0].as_py()] == [MAX_CHARS + 1, 5]
    assert pa.types.is_list(table.schema.field("captions").type)


@pytest.mark.parametrize("cell", [5, 2.5, True, {"a": 1}, {}])
def test_what_is_no_text_is_a_caption_that_says_nothing(cell):
    assert caption_list(cell) == [""]
    assert caption_list(["a", cell, ["b"], None]) == ["a", "", "", ""]


def test_the_nan_that_pandas_writes_for_a_null_is_one():
    nan = float("nan")
    assert caption_list(nan) == []
    assert caption_list([nan, "a"]) == ["", "a"]
    assert text(nan) == ""
    (extra,) = extra_column({"license": [nan]}, pa.struct([("license", pa.string())])).to_pylist()
    assert extra == {"license": None}
