"""The first filter that refuses a row gives its reason; the numbers of all are in the lineage."""

from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from hypothesis import given
from hypothesis import strategies as st

from pipeline.filters import described, judged


@dataclass(frozen=True)
class Below:
    reason: ClassVar[str] = "dropped:below"
    least: int

    def refuses(self, table):
        return pc.less(table.column("x"), self.least)


@dataclass(frozen=True)
class Odd:
    reason: ClassVar[str] = "dropped:odd"

    def refuses(self, table):
        return pc.equal(pc.bit_wise_and(table.column("x"), 1), 1)


@given(st.lists(st.integers(0, 9)), st.permutations([Below(3), Odd(), Below(6)]), st.integers(0, 3))
def test_each_row_has_the_reason_of_the_first_filter_that_refuses_it(values, filters, count):
    bad = {Below(3): lambda x: x < 3, Below(6): lambda x: x < 6, Odd(): lambda x: x % 2 == 1}
    chosen = filters[:count]
    expected = [next((f.reason for f in chosen if bad[f](x)), "fine") for x in values]
    table = pa.table({"x": pa.array(values, pa.int64())})
    assert judged(table, chosen, "fine") == expected


def test_the_lineage_holds_the_numbers_in_order():
    assert described([Odd(), Below(3)]) == [
        {"reason": "dropped:odd"},
        {"reason": "dropped:below", "least": 3},
    ]
