"""Picture filters drop what is too small, too long, animated or of one colour, at exact bounds."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.filters import judged
from pipeline.picture_filters import (
    FACTS,
    PICTURE_FILTERS,
    AnimationFilter,
    ColourFilter,
    RatioFilter,
    SideFilter,
)


def facts(*rows) -> pa.Table:
    return pa.table([list(column) for column in zip(*rows, strict=True)], schema=FACTS)


def refused(each, *rows) -> list[bool]:
    return each.refuses(facts(*rows)).to_pylist()


def test_the_bounds_themselves_are_kept():
    rows = [(64, 200, False, 9), (200, 64, False, 9), (63, 200, False, 9), (200, 63, False, 9)]
    assert refused(SideFilter(min_side_px=64), *rows) == [False, False, True, True]
    rows = [(300, 100, False, 9), (100, 300, False, 9), (301, 100, False, 9), (33, 100, False, 9)]
    assert refused(RatioFilter(max_ratio=3.0), *rows) == [False, False, True, True]
    rows = [(9, 9, False, 8), (9, 9, False, 9), (9, 9, False, 0)]
    assert refused(ColourFilter(max_range=8), *rows) == [True, False, True]
    assert refused(AnimationFilter(), (9, 9, True, 9), (9, 9, False, 9)) == [True, False]


SIDES = st.integers(1, 10**5)


@given(st.lists(st.tuples(SIDES, SIDES, st.booleans(), st.integers(0, 255)), max_size=9))
@pytest.mark.parametrize("name", PICTURE_FILTERS)
def test_a_set_keeps_what_a_plain_reading_of_it_keeps(name, rows):
    numbers = {"default": (32, 5, 8), "strict": (200, 3, 24)}

    def reason(width, height, animated, colours):
        if name == "none":
            return "kept"
        side, ratio, most = numbers[name]
        short, long = sorted((width, height))
        if animated:
            return "dropped:animated"
        if short < side:
            return "dropped:too_small"
        if long > ratio * short:
            return "dropped:too_elongated"
        return "dropped:one_colour" if colours <= most else "kept"

    table = facts(*rows) if rows else FACTS.empty_table()
    assert judged(table, PICTURE_FILTERS[name], "kept") == [reason(*row) for row in rows]


def test_numbers_that_make_no_sense_are_refused():
    for wrong in (
        lambda: SideFilter(min_side_px=0),
        lambda: RatioFilter(max_ratio=0.5),
        lambda: RatioFilter(max_ratio=float("nan")),
        lambda: ColourFilter(max_range=-1),
    ):
        with pytest.raises(ConfigError, match=r"\w+: \S+ is less than"):
            wrong()
