"""Equal lineage, equal digest, and no difference; any other lineage differs in a field by name."""

import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.lineage import Lineage, Parent, canonical_digest

LINEAGE = Lineage(
    "features",
    {"layer": -2, "transform": {"side_px": 224, "mean": [0.5, 0.4]}},
    (Parent("pairs", "ab"), Parent("captions", "cd")),
    {"encoder": {"name": "x", "digest": "ef"}},
)
steady = settings(max_examples=200, deadline=None, derandomize=True)
LEAF = st.none() | st.booleans() | st.integers(0, 2) | st.sampled_from(["", "a"])
CONFIG = st.dictionaries(
    st.sampled_from("ab"),
    st.recursive(LEAF, lambda x: st.lists(x, max_size=2) | st.dictionaries(st.just("a"), x)),
)


def test_the_canonical_digest_is_that_of_sorted_ascii_json():
    text = '{"a":[1,null,true],"b":"caf\\u00e9"}'
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert canonical_digest({"b": "caf\u00e9", "a": (1, None, True)}) == expected


def test_lineage_comes_back_from_json():
    again = Lineage.from_json(json.loads(json.dumps(LINEAGE.to_json())))
    assert again == LINEAGE
    assert canonical_digest(again.to_json()) == canonical_digest(LINEAGE.to_json())


@pytest.mark.parametrize("value", [[], {"job": "x"}, {**LINEAGE.to_json(), "parents": [1]}, None])
def test_json_that_is_no_lineage_is_refused(value):
    with pytest.raises((KeyError, TypeError)):
        Lineage.from_json(value)


@pytest.mark.parametrize(
    ("changed", "field", "values"),
    [
        ({"job": "curate"}, "job: ", ["curate", "features"]),
        ({"config": {**LINEAGE.config, "layer": -1}}, "config.layer: ", ["-1 ", "-2 "]),
        (
            {"config": {"layer": -2, "transform": {"side_px": 224, "mean": [0.5, 0.3]}}},
            "config.transform.mean.1: ",
            ["0.3", "0.4"],
        ),
        ({"parents": (Parent("pairs", "ab"),)}, "parents.1.digest: ", ["cd"]),
        ({"frozen": {}}, "frozen", []),
    ],
)
def test_the_first_difference_is_named_with_both_values(changed, field, values):
    difference = replace(LINEAGE, **changed).difference(LINEAGE)
    assert difference.startswith(field)
    assert all(value in difference for value in values)


def test_a_configuration_read_back_is_no_difference():
    made = Lineage("ingest", {"sizes_px": (1, 2)})
    assert Lineage.from_json(json.loads(json.dumps(made.to_json()))).difference(made) == ""


@steady
@given(CONFIG, CONFIG)
def test_two_lineages_differ_in_no_field_exactly_if_their_digests_are_equal(one, other):
    one, other = Lineage("job", one), Lineage("job", other)
    equal = canonical_digest(one.to_json()) == canonical_digest(other.to_json())
    assert (one.difference(other) == "") == equal
    assert one.difference(one) == ""
