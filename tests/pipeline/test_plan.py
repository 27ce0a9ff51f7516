"""The plan is what a plain loop over rows and dicts would make of the hashes."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.accounting import Account
from pipeline.errors import ConfigError
from pipeline.near_duplicates import NearDuplicateConfig
from pipeline.plan import PlanConfig, left_out, make_plan, rows_of_shard
from pipeline.schemas import HASHES, KEPT, PLAN

steady = settings(max_examples=300, deadline=None, derandomize=True)


def name(letter: str | None) -> bytes | None:
    return letter and letter.encode() * 16


def row(uid: str, pixels: str | None, *, size=1, original=1, captions=1, phash=None) -> dict:
    """A row of hashes; `phash` is the number of bits that are set, from the first one on."""
    return {
        "uid": name(uid),
        "pixels": name(pixels),
        "stored_bytes": size,
        "original_pixels": original,
        "num_captions": captions,
        "phash": None if phash is None else (~(~0 << phash)).to_bytes(32, "big"),
        "colours": bytes(48),
    }


def plan_of(
    rows: list[dict], config: PlanConfig | None = None, shards=None, *, held_out=(), **near
) -> pa.Table:
    """A plan; without `shards` all rows are of input shard 0."""
    hashes = pa.Table.from_pylist(rows, schema=HASHES)
    shards = np.zeros(len(rows), int) if shards is None else np.array(shards, int)
    evaluation = pa.Table.from_pylist(list(held_out), schema=HASHES)
    near = NearDuplicateConfig(**near)
    plan = make_plan(hashes, shards, config or PlanConfig(), near, evaluation)
    assert plan.schema.equals(PLAN)
    return plan


def outcomes_by_input(plan: pa.Table) -> list[str]:
    order = sorted(plan.to_pylist(), key=lambda r: (r["input_shard"], r["input_row"]))
    return [r["outcome"] for r in order]


def slow_outcomes(rows: list[dict]) -> tuple[list[str], dict[bytes, int]]:
    """The outcome of each row, and for each picture the row that is kept."""
    first_of_uid: dict[bytes, bytes] = {}
    for r in rows:
        if r["pixels"] is not None:
            first_of_uid.setdefault(r["uid"], r["pixels"])
    outcomes = []
    for r in rows:
        if r["pixels"] is None:
            outcomes.append("taken_down")
        elif first_of_uid[r["uid"]] != r["pixels"]:
            outcomes.append("uid_taken")
        else:
            outcomes.append("duplicate")
    best: dict[bytes, int] = {}
    for number, r in enumerate(rows):
        if outcomes[number] != "duplicate":
            continue
        held = best.get(r["pixels"])
        if held is None or r["original_pixels"] > rows[held]["original_pixels"]:
            best[r["pixels"]] = number
    for number in best.values():
        outcomes[number] = KEPT
    return outcomes, best


def fill(sizes: list[int], rows: int, num_bytes: int) -> list[list[int]]:
    """Rows put into shards one by one; a shard is closed before it would break a bound."""
    shards: list[list[int]] = []
    for number, size in enumerate(sizes):
        last = shards[-1] if shards else None
        if last and len(last) < rows and sum(sizes[r] for r in last) + size <= num_bytes:
            last.append(number)
        else:
            shards.append([number])
    return shards


def slow_shards(sizes: list[int], config: PlanConfig) -> list[tuple[int, int]]:
    """Shard and row of each kept picture: as few shards as can be, even in rows if bytes allow."""
    count = len(fill(sizes, config.shard_rows, config.shard_bytes))
    starts = [number * len(sizes) // count for number in range(count)] + [len(sizes)]
    shards = [list(range(starts[n], starts[n + 1])) for n in range(count)]
    if any(sum(sizes[r] for r in rows) > config.shard_bytes for rows in shards):
        bounds = range(1, config.shard_rows + 1)
        filled = (fill(sizes, rows, config.shard_bytes) for rows in bounds)
        shards = next(shards for shards in filled if len(shards) <= count)
    return [(n, r - rows[0]) for n, rows in enumerate(shards) for r in rows]


def slow_plan(rows: list[dict], shards: list[int], config: PlanConfig) -> list[dict]:
    outcomes, best = slow_outcomes(rows)
    kept = [number for number, outcome in enumerate(outcomes) if outcome == KEPT]
    places = slow_shards([rows[number]["stored_bytes"] for number in kept], config)
    order: list[tuple[int, tuple[int | None, int | None]]] = []
    for number, place in zip(kept, places, strict=True):
        order.append((number, place))
        for other, outcome in enumerate(outcomes):
            if outcome == "duplicate" and best[rows[other]["pixels"]] == number:
                order.append((other, place))
    for number, outcome in enumerate(outcomes):
        if outcome in ("taken_down", "uid_taken"):
            order.append((number, (None, None)))
    return [
        {
            "uid": rows[number]["uid"],
            "pixels": rows[number]["pixels"],
            "cluster": rows[number]["pixels"] if shard is not None else None,
            "output_shard": shard,
            "output_row": row_in_shard,
            "input_shard": shards[number],
            "input_row": number - shards.index(shards[number]),
            "num_captions": rows[number]["num_captions"],
            "outcome": outcomes[number],
        }
        for number, (shard, row_in_shard) in order
    ]


HASH_ROWS = st.lists(
    st.builds(
        row,
        st.sampled_from("abcdef"),
        st.none() | st.sampled_from("uvwxyz"),
        size=st.integers(0, 9),
        original=st.integers(1, 3),
        captions=st.integers(0, 3),
    ),
    max_size=14,
)


@steady
@given(
    rows=HASH_ROWS,
    steps=st.lists(st.integers(0, 2), min_size=14, max_size=14),
    config=st.builds(PlanConfig, shard_rows=st.integers(1, 6), shard_bytes=st.integers(9, 30)),
)
def test_a_plan_is_what_a_plain_loop_makes(rows, steps, config):
    shards = [sum(steps[: number + 1]) for number in range(len(rows))]  # ascending, with gaps
    assert plan_of(rows, config, shards).to_pylist() == slow_plan(rows, shards, config)


@steady
@given(rows=HASH_ROWS)
def test_no_uid_and_no_picture_is_kept_twice(rows):
    kept = [r for r in plan_of(rows).to_pylist() if r["outcome"] == KEPT]
    assert len({r["uid"] for r in kept}) == len({r["pixels"] for r in kept}) == len(kept)


def test_equal_pictures_are_united_and_the_largest_original_is_kept():
    rows = [row("a", "x", original=4), row("b", "x", original=9), row("c", "x", original=9)]
    plan = plan_of([*rows, row("d", "y")])
    assert outcomes_by_input(plan) == ["duplicate", KEPT, "duplicate", KEPT]
    assert plan.column("input_row").to_pylist() == [1, 0, 2, 3]  # the kept one first
    assert plan.column("output_row").to_pylist() == [0, 0, 0, 1]


def test_of_two_pictures_that_claim_one_uid_the_first_has_it():
    rows = [row("a", "x"), row("a", "y"), row("b", "y"), row("a", "x", original=5)]
    plan = plan_of(rows)
    assert outcomes_by_input(plan) == ["duplicate", "uid_taken", KEPT, KEPT]
    assert plan.to_pylist()[-1]["output_shard"] is None


def test_a_picture_taken_down_claims_no_uid():
    rows = [row("a", None), row("a", "x"), row("a", None)]
    assert outcomes_by_input(plan_of(rows)) == ["taken_down", KEPT, "taken_down"]


def test_no_input_is_an_empty_plan():
    plan = plan_of([])
    assert plan.num_rows == 0
    assert left_out(plan) == (Account(0, 0), Account(0, 0))
    assert rows_of_shard(plan, 0).num_rows == 0


def test_nothing_but_pictures_taken_down_is_a_plan_without_shards():
    plan = plan_of([row("a", None, captions=2), row("b", None, size=None, original=None)])
    assert plan.column("output_shard").null_count == 2
    pictures, captions = left_out(plan)
    assert pictures == Account(2, 0, {"taken_down": 2})
    assert captions == Account(3, 0, {"picture:taken_down": 3})


def many(sizes: list[int]) -> list[dict]:
    return [
        row("a", "a", size=size) | {"uid": n.to_bytes(16, "big"), "pixels": n.to_bytes(16, "big")}
        for n, size in enumerate(sizes)
    ]


@pytest.mark.parametrize(
    ("sizes", "config", "num_shards"),
    [
        ([1] * 1000, {"shard_rows": 300}, 4),
        ([1] * 1000, {"shard_bytes": 7}, 143),
        ([3] * 100 + [1] * 100, {"shard_bytes": 30, "shard_rows": 40}, 14),
    ],
)
def test_shards_are_few_and_respect_both_bounds(sizes, config, num_shards):
    config = PlanConfig(**config)
    shards = plan_of(many(sizes), config).column("output_shard").to_pylist()
    assert shards == sorted(shards)
    counts = Counter(shards)
    assert sorted(counts) == list(range(num_shards))
    assert max(counts.values()) <= config.shard_rows
    totals: Counter[int] = Counter()
    for number, shard in enumerate(shards):
        totals[shard] += sizes[number]
    assert max(totals.values()) <= config.shard_bytes


@pytest.mark.parametrize("config", [{"shard_rows": 300}, {"shard_bytes": 7}])
def test_pictures_of_one_size_give_shards_that_differ_by_one_row_at_most(config):
    plan = plan_of(many([1] * 1000), PlanConfig(**config))
    counts = Counter(plan.column("output_shard").to_pylist()).values()
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("sizes", [[1000], [1000, 1], [0, 1000, 1000], [250, 250]])
def test_a_picture_over_the_bound_is_a_shard_of_its_own_and_shards_count_from_zero(sizes):
    plan = plan_of(many(sizes), PlanConfig(shard_bytes=100))
    shards = plan.column("output_shard").to_pylist()
    assert sorted(set(shards)) == list(range(len(set(shards))))
    for size, shard in zip(sizes, shards, strict=True):
        assert size <= 100 or shards.count(shard) == 1


def test_a_picture_over_the_bound_does_not_scatter_the_others():
    plan = plan_of(many([1] * 300 + [1000] + [1] * 300), PlanConfig(shard_bytes=100))
    shards = plan.column("output_shard").to_pylist()
    assert shards.count(shards[300]) == 1
    assert len(set(shards)) < 60  # 7 would do


@steady
@given(rows=HASH_ROWS)
def test_the_rows_of_a_shard_are_those_that_a_scan_finds(rows):
    plan = plan_of(rows, PlanConfig(shard_rows=2))
    everything = plan.to_pylist()
    for shard in range(-1, 9):
        expected = [r for r in everything if r["output_shard"] == shard]
        assert rows_of_shard(plan, shard).to_pylist() == expected


@steady
@given(rows=HASH_ROWS)
def test_what_is_left_out_is_accounted_with_its_captions(rows):
    plan = plan_of(rows, PlanConfig(shard_rows=2))
    out = [r for r in plan.to_pylist() if r["output_shard"] is None]
    pictures, captions = left_out(plan)
    assert pictures == Account.of(r["outcome"] for r in out)
    reasons = [f"picture:{r['outcome']}" for r in out for _ in range(r["num_captions"])]
    assert Account.total([captions]) == Account.of(reasons)
    assert pictures.num_kept == captions.num_kept == 0


def test_the_plan_does_not_depend_on_how_the_hashes_are_chunked():
    rows = [row(a, b, size=n) for n, (a, b) in enumerate(zip("abcab", "xyxzy", strict=True))]
    shards = np.array([0, 0, 1, 1, 1])
    whole = pa.Table.from_pylist(rows, schema=HASHES)
    chunks = [HASHES.empty_table(), whole.slice(0, 2), whole.slice(2, 3)]
    plan = make_plan(whole, shards, PlanConfig(), NearDuplicateConfig())
    assert make_plan(pa.concat_tables(chunks), shards, PlanConfig(), NearDuplicateConfig()).equals(
        plan
    )


def chain() -> list[dict]:
    """Four pictures, each ten bits from the next; the third is the largest."""
    sizes = (1, 1, 5, 1)
    return [
        row(letter, letter, original=size, phash=10 * place)
        for place, (letter, size) in enumerate(zip("abcd", sizes, strict=True))
    ]


def test_near_duplicates_go_to_the_best_that_they_are_themselves_alike_to():
    plan = plan_of(chain(), near_bits=10)
    # c is best and takes b and d; a is alike to b alone, which is not kept.
    assert outcomes_by_input(plan) == [KEPT, "near_duplicate", KEPT, "near_duplicate"]
    assert plan.column("input_row").to_pylist() == [0, 2, 1, 3]
    assert plan.column("output_row").to_pylist() == [0, 1, 1, 1]
    assert set(plan.column("cluster").to_pylist()) == {name("c")}  # and so they are in one split


def test_near_duplicates_may_be_kept_together_or_not_be_looked_for():
    together = plan_of(chain(), near_bits=10, near_duplicates="together")
    assert outcomes_by_input(together) == [KEPT] * 4
    assert set(together.column("cluster").to_pylist()) == {name("c")}
    ignored = plan_of(chain(), near_bits=10, near_duplicates="ignore")
    assert outcomes_by_input(ignored) == [KEPT] * 4
    assert ignored.column("cluster").to_pylist() == ignored.column("pixels").to_pylist()


def test_an_equal_picture_of_a_near_duplicate_goes_where_that_goes():
    rows = [*chain()[1:3], row("e", "b", original=0, phash=10)]
    plan = plan_of(rows, near_bits=10)
    assert outcomes_by_input(plan) == ["near_duplicate", KEPT, "near_duplicate"]
    assert plan.column("output_row").to_pylist() == [0, 0, 0]


def test_pictures_without_a_perceptual_hash_are_alike_to_none():
    rows = [row("a", "a"), row("b", "b"), row("c", "c", phash=0), row("d", "d", phash=0)]
    assert outcomes_by_input(plan_of(rows)) == [KEPT, KEPT, KEPT, "near_duplicate"]


def test_what_is_alike_to_a_picture_held_out_is_a_leak_and_what_is_alike_to_a_leak_stays():
    held_out = [row("y", "y", phash=30), row("z", "x"), row("a", None)]
    rows = [*chain(), row("e", "x", captions=3), row("f", "d", phash=30)]
    plan = plan_of(rows, near_bits=10, held_out=held_out)
    leak = "evaluation_leak"
    assert outcomes_by_input(plan) == [KEPT, "near_duplicate", leak, leak, leak, leak]
    assert plan.num_rows == len(rows)
    pictures, captions = left_out(plan)
    assert pictures == Account(4, 0, {leak: 4})
    assert captions == Account(6, 0, {f"picture:{leak}": 6})


def test_colours_may_differ_more_from_a_picture_held_out_than_from_one_to_unite_with():
    rows = [
        row(n, n, phash=9) | {"colours": bytes([level]) * 48}
        for n, level in (("a", 0), ("b", 64), ("c", 65), ("d", 84), ("e", 110))
    ]
    held_out = [row("y", "y", phash=9)]
    leak = "evaluation_leak"
    assert outcomes_by_input(plan_of(rows, held_out=held_out)) == [
        *(leak, leak),
        KEPT,
        "near_duplicate",
        KEPT,
    ]
    plan = plan_of(rows, held_out=held_out, leak_colours=20)
    assert outcomes_by_input(plan) == [leak, KEPT, "near_duplicate", "near_duplicate", KEPT]


def test_equal_pictures_are_leaks_even_where_near_duplicates_are_ignored():
    rows = [row("a", "x"), row("b", "y")]
    plan = plan_of(rows, held_out=[row("z", "x")], near_duplicates="ignore")
    assert outcomes_by_input(plan) == ["evaluation_leak", KEPT]


@pytest.mark.parametrize("wrong", [{"shard_rows": 0}, {"shard_bytes": -1}])
def test_a_configuration_that_makes_no_sense_is_refused_with_its_value(wrong):
    key, value = next(iter(wrong.items()))
    with pytest.raises(ConfigError, match=f"{key}: {value} is not positive"):
        PlanConfig(**wrong)
