"""Pairs are gathered as the plan says, captions united and judged, and each picture in a split."""

import hashlib
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.accounting import Account
from pipeline.captions import web_caption
from pipeline.curate import SplitConfig, gather, split_of
from pipeline.errors import ConfigError
from pipeline.near_duplicates import NearDuplicateConfig
from pipeline.plan import PlanConfig, left_out, make_plan, rows_of_shard
from pipeline.schemas import HASHES, KEPT, PAIRS, RAW

DIGESTS = [hashlib.sha256(str(number).encode()).digest()[:16] for number in range(20_000)]


def slow_split(pixels: bytes, config: SplitConfig) -> str:
    """The hash as a number from 0 to 1, test first, then validation."""
    digest = hashlib.sha256(config.split_salt.encode("utf-8") + pixels).hexdigest()
    position = int(digest[:16], 16) / 16**16
    for split, share in (("test", config.test_share), ("validation", config.validation_share)):
        if position < share:
            return split
        position -= share
    return "train"


@pytest.mark.parametrize(("validation", "test"), [(0.05, 0.05), (0.3, 0.1), (0, 0.5), (0.5, 0)])
def test_the_splits_have_their_shares(validation, test):
    config = SplitConfig(validation_share=validation, test_share=test)
    counts = Counter(split_of(digest, config) for digest in DIGESTS)
    shares = {"validation": validation, "test": test, "train": 1 - validation - test}
    for split, share in shares.items():
        deviation = (share * (1 - share) * len(DIGESTS)) ** 0.5
        assert abs(counts[split] - share * len(DIGESTS)) <= 4 * deviation


@pytest.mark.parametrize(
    "config",
    [SplitConfig(), SplitConfig(split_salt="\u0645", test_share=0.4, validation_share=0.6)],
)
def test_the_split_is_the_position_of_a_salted_hash(config):
    for digest in DIGESTS[:2000]:
        assert split_of(digest, config) == slow_split(digest, config)


def test_the_split_stays_what_it_was_when_this_was_written():
    # Checkpoints are compared by it: a change would put test pictures into training.
    splits = [split_of(digest, SplitConfig()) for digest in DIGESTS[:80]]
    held_out = {number: split for number, split in enumerate(splits) if split != "train"}
    assert held_out == {24: "validation", 51: "test", 63: "test", 67: "test"}


def test_another_salt_gives_an_independent_split():
    one = SplitConfig(validation_share=0.5, test_share=0)
    other = SplitConfig(validation_share=0.5, test_share=0, split_salt="other")
    same = sum(split_of(digest, one) == split_of(digest, other) for digest in DIGESTS)
    assert abs(same - len(DIGESTS) / 2) <= 4 * (len(DIGESTS) / 4) ** 0.5


def test_everything_can_be_held_out():
    config = SplitConfig(validation_share=0.7, test_share=0.3)
    assert "train" not in {split_of(digest, config) for digest in DIGESTS}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"validation_share": -0.1}, "validation_share: -0.1 is not between 0 and 1"),
        ({"test_share": 1.1}, "test_share: 1.1 is not between 0 and 1"),
        ({"test_share": float("nan")}, "test_share: nan is not between 0 and 1"),
        ({"validation_share": 0.6, "test_share": 0.5}, "validation_share: 0.6 and test_share: 0.5"),
    ],
)
def test_shares_that_make_no_sense_are_refused_with_their_values(wrong, message):
    with pytest.raises(ConfigError, match=message):
        SplitConfig(**wrong)


def raw_row(number: int, captions: list[str]) -> dict:
    """A row of `raw` that can be told from all others; its picture need not be one here."""
    return {
        "uid": number.to_bytes(16, "big"),
        "url": f"http://a/{number}",
        "picture": f"picture {number}".encode(),
        "width_px": number,
        "height_px": number + 1,
        "original_width_px": number + 2,
        "original_height_px": number + 3,
        "captions": [web_caption(text) for text in captions],
    }


class Inputs:
    """Input shards in memory, made of (captions, pixels or None, shard) a row."""

    def __init__(self, rows: list[tuple[list[str], int | None, int]]) -> None:
        self.shards = sorted(shard for _, _, shard in rows)
        self.rows = [raw_row(number, captions) for number, (captions, _, _) in enumerate(rows)]
        self.pixels = [p if p is None else p.to_bytes(16, "big") for _, p, _ in rows]
        self.opened: Counter[int] = Counter()

    def open(self, shard: int) -> pa.Table:
        self.opened[shard] += 1
        rows = [r for r, s in zip(self.rows, self.shards, strict=True) if s == shard]
        return pa.Table.from_pylist(rows, schema=RAW)

    def plan(self, shard_rows: int) -> pa.Table:
        hashes = {
            "uid": [row["uid"] for row in self.rows],
            "pixels": self.pixels,
            "stored_bytes": [1] * len(self.rows),
            "original_pixels": [1] * len(self.rows),
            "num_captions": [len(row["captions"]) for row in self.rows],
            "phash": [None] * len(self.rows),
            "colours": [None] * len(self.rows),
        }
        config, near = PlanConfig(shard_rows=shard_rows), NearDuplicateConfig()
        return make_plan(pa.table(hashes, schema=HASHES), np.array(self.shards, int), config, near)

    def slow_pairs(self) -> list[dict]:
        """All pairs in order: the first row of each picture, with the captions of all of them."""
        pairs = []
        for number, pixels in enumerate(self.pixels):
            if pixels is None or pixels in self.pixels[:number]:
                continue
            captions: dict[str, dict] = {}
            for row, other in zip(self.rows, self.pixels, strict=True):
                for caption in row["captions"] if other == pixels else ():
                    text = " ".join(caption["text"].split())
                    status = KEPT if text else "rejected:empty"
                    captions[text] = {"text": text, "source": "web", "status": status}
            split = split_of(pixels, SplitConfig())
            pairs.append({**self.rows[number], "captions": list(captions.values()), "split": split})
        return pairs


INPUT_ROWS = st.lists(
    st.tuples(
        st.lists(st.sampled_from(["a", "b ", " b", " ", "", "c  d"]), max_size=3),
        st.none() | st.integers(0, 5),
        st.integers(0, 3),
    ),
    max_size=12,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(rows=INPUT_ROWS, shard_rows=st.integers(1, 4))
def test_pairs_are_what_a_plain_loop_gathers_and_every_caption_is_accounted_for(rows, shard_rows):
    inputs = Inputs(rows)
    plan = inputs.plan(shard_rows)
    num_shards = len(plan.column("output_shard").drop_null().unique())
    shards = [
        gather(rows_of_shard(plan, number), inputs.open, SplitConfig())
        for number in range(num_shards)
    ]
    for curated in shards:
        assert curated.pairs.schema.equals(PAIRS)
        assert curated.pictures.num_kept == curated.pairs.num_rows
        groups = curated.pairs.column("captions").to_pylist()
        found = Counter(caption["status"] for group in groups for caption in group)
        assert curated.captions.num_kept == found.pop(KEPT, 0)
        found["duplicate"] = curated.captions.dropped.get("duplicate", 0)
        assert +found == Counter(curated.captions.dropped)

    assert [pair for curated in shards for pair in curated.pairs.to_pylist()] == inputs.slow_pairs()
    out_pictures, out_captions = left_out(plan)
    pictures = Account.total([out_pictures, *(curated.pictures for curated in shards)])
    captions = Account.total([out_captions, *(curated.captions for curated in shards)])
    assert pictures.num_in == len(rows)
    assert captions.num_in == sum(len(texts) for texts, _, _ in rows)


def test_each_input_shard_is_opened_once_and_no_other():
    inputs = Inputs([(["x"], 1, 0), (["y"], 2, 0), (["z"], 3, 1), ([], 1, 4), ([], 2, 4)])
    plan = inputs.plan(shard_rows=10)
    gather(plan, inputs.open, SplitConfig())
    assert inputs.opened == {0: 1, 1: 1, 4: 1}
    inputs.opened.clear()
    gather(rows_of_shard(inputs.plan(shard_rows=1), 2), inputs.open, SplitConfig())
    assert inputs.opened == {1: 1}


def test_captions_of_united_pictures_follow_one_another_without_doubles():
    inputs = Inputs([(["one", "two "], 7, 0), (["three", "one"], 7, 1), ([" ", ""], 7, 1)])
    curated = gather(inputs.plan(4), inputs.open, SplitConfig())
    assert curated.pairs.num_rows == 1
    captions = curated.pairs.column("captions")[0].as_py()
    assert [(c["text"], c["status"]) for c in captions] == [
        ("one", KEPT),
        ("two", KEPT),
        ("three", KEPT),
        ("", "rejected:empty"),
    ]
    assert curated.pictures == Account(3, 1, {"duplicate": 2})
    assert curated.captions == Account(6, 3, {"duplicate": 2, "rejected:empty": 1})


def test_an_empty_plan_gathers_no_pairs():
    inputs = Inputs([])
    curated = gather(inputs.plan(4), inputs.open, SplitConfig())
    assert curated.pairs.equals(PAIRS.empty_table())
    assert curated.pictures == curated.captions == Account(0, 0)


def test_what_was_taken_down_after_the_plan_leaves_with_its_copies_and_is_counted():
    # Rows 0 and 2 are one picture; 1 and 3 another, of which only the copy is taken down.
    inputs = Inputs([(["a"], 7, 0), (["b"], 8, 0), (["c", "d"], 7, 1), (["e"], 8, 1)])
    down = {
        (0, inputs.open(0).column("uid")[0].as_py()),
        (1, inputs.open(1).column("uid")[1].as_py()),
    }
    curated = gather(inputs.plan(4), inputs.open, SplitConfig(), lambda n, uid: (n, uid) in down)
    assert curated.pictures == Account(4, 1, {"taken_down": 3})
    assert curated.captions == Account(5, 1, {"picture:taken_down": 4})
    assert [c["text"] for c in curated.pairs.column("captions")[0].as_py()] == ["b"]
