"""Captions are counted over the pictures that stay, each picture once."""

from collections import defaultdict

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.captions import normalise, web_caption
from pipeline.near_duplicates import NearDuplicateConfig
from pipeline.plan import PlanConfig, make_plan
from pipeline.recurring import (
    RECURRING,
    caption_digests,
    count_recurring,
    counts_of,
    text_digest,
)
from pipeline.schemas import HASHES, RAW

ROWS = st.lists(
    st.tuples(
        st.lists(st.sampled_from(["a", " a", "b", "c", "", " "]), max_size=3),
        st.none() | st.integers(0, 4),
        st.integers(0, 3),
    ),
    max_size=14,
)


def plan_of(pixels: list[int | None], shards: list[int]) -> pa.Table:
    names = [None if p is None else p.to_bytes(16, "big") for p in pixels]
    rows = [
        {
            "uid": number.to_bytes(16, "big"),
            "pixels": name,
            "stored_bytes": 1,
            "original_pixels": 1,
            "num_captions": 1,
        }
        for number, name in enumerate(names)
    ]
    hashes = pa.Table.from_pylist(rows, schema=HASHES)
    return make_plan(hashes, np.array(shards, int), PlanConfig(shard_rows=2), NearDuplicateConfig())


def digests_of(captions: list[list[str]]) -> pa.Table:
    column = [[web_caption(text) for text in texts] for texts in captions]
    return caption_digests(pa.chunked_array([pa.array(column, RAW.field("captions").type)]))


@given(ROWS, st.integers(0, 3))
def test_the_counts_are_those_of_a_plain_loop(rows, more_than):
    rows.sort(key=lambda row: row[2])
    plan = plan_of([pixels for _, pixels, _ in rows], [shard for *_, shard in rows])
    numbers = sorted({shard for *_, shard in rows})
    digests = [(n, digests_of([texts for texts, _, s in rows if s == n])) for n in numbers]
    pictures = defaultdict(set)
    for texts, pixels, _ in rows:
        for text in map(normalise, texts):
            if text and pixels is not None:
                pictures[text].add(pixels)
    expected = {text: len(some) for text, some in pictures.items() if len(some) > more_than}

    found = count_recurring(plan, digests, more_than)
    assert found.schema.equals(RECURRING)
    known = found.column("digest").to_pylist()
    assert known == sorted(text_digest(text) for text in expected)
    texts = ["a", "b", "c", "d"]
    assert counts_of(texts, found).tolist() == [expected.get(text, 1) for text in texts]


def test_without_recurring_captions_each_counts_as_of_one_picture():
    assert counts_of(["a", "b"], RECURRING.empty_table()).tolist() == [1, 1]
    assert counts_of([], RECURRING.empty_table()).tolist() == []


def test_a_digest_is_that_of_the_text_alone():
    assert text_digest("a cat") == text_digest("a cat")
    assert text_digest("a cat") != text_digest("a cat ")
    assert digests_of([[" a\tcat "], [], ["a cat", ""]]).to_pylist() == [
        {"input_row": 0, "digest": text_digest("a cat")},
        {"input_row": 2, "digest": text_digest("a cat")},
    ]
