"""The third phase of curate: the pairs of one output shard, gathered as the plan says."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import pyarrow as pa

from pipeline.accounting import Account
from pipeline.captions import Caption, judge, unite
from pipeline.errors import ConfigError
from pipeline.schemas import KEPT, PAIRS, RAW


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """How pictures are split; by what they show, so a picture is in one split wherever it is."""

    validation_share: float = 0.05
    """Share of the pictures held out to choose checkpoints and thresholds, 0 to 1."""

    test_share: float = 0.05
    """Share of the pictures held out for published numbers, 0 to 1."""

    split_salt: str = "viaduct"
    """Another salt gives another split."""

    def __post_init__(self) -> None:
        for name in ("validation_share", "test_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not between 0 and 1")
        if self.validation_share + self.test_share > 1:
            raise ConfigError(
                f"validation_share: {self.validation_share} and "
                f"test_share: {self.test_share} are more than all"
            )


def split_of(pixels: bytes, config: SplitConfig) -> str:
    """`train`, `validation` or `test`, by a salted hash of a picture's pixel digest."""
    digest = hashlib.sha256(config.split_salt.encode() + pixels).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < config.test_share:
        return "test"
    if position < config.test_share + config.validation_share:
        return "validation"
    return "train"


@dataclass(frozen=True)
class Curated:
    """One shard of `pairs` with both its accounts."""

    pairs: pa.Table
    pictures: Account
    captions: Account


def gather(plan: pa.Table, open_input: Callable[[int], pa.Table], split: SplitConfig) -> Curated:
    """Make one output shard.

    Args:
        plan: the plan's rows for this shard, in order.
        open_input: number of an input shard to its rows (`schemas.RAW`).
        split: see there.
    """
    rows = _input_rows(plan, open_input)
    outcomes = plan.column("outcome").to_pylist()
    kept = [number for number, outcome in enumerate(outcomes) if outcome == KEPT]

    incoming = rows.column("captions").to_pylist()
    captions: list[list[Caption]] = []
    num_in = num_equal = 0
    for first, end in pairwise([*kept, len(outcomes)]):
        group = [caption for number in range(first, end) for caption in incoming[number]]
        united, equal = unite(judge(caption) for caption in group)
        captions.append(united)
        num_in += len(group)
        num_equal += equal

    pixels = plan.column("pixels").take(pa.array(kept, pa.int64())).to_pylist()
    pairs = rows.take(pa.array(kept, pa.int64()))
    columns = {name: pairs.column(name) for name in RAW.names}
    columns["captions"] = pa.array(captions, RAW.field("captions").type)
    columns["split"] = pa.array([split_of(digest, split) for digest in pixels], pa.string())
    statuses = [caption["status"] for group in captions for caption in group]
    return Curated(
        pairs=pa.table(columns, schema=PAIRS),
        pictures=Account.of(outcomes),
        captions=Account.of([*statuses, *["duplicate"] * num_equal]),
    )


def _input_rows(plan: pa.Table, open_input: Callable[[int], pa.Table]) -> pa.Table:
    """The input rows that the plan names, in its order; each input shard is opened once."""
    shards = plan.column("input_shard").to_pylist()
    tables = {number: open_input(number) for number in sorted(set(shards))}
    offsets, start = {}, 0
    for number, table in tables.items():
        offsets[number] = start
        start += table.num_rows
    rows = [
        offsets[shard] + row
        for shard, row in zip(shards, plan.column("input_row").to_pylist(), strict=True)
    ]
    every = pa.concat_tables(tables.values()) if tables else RAW.empty_table()
    return every.take(pa.array(rows, pa.int64()))
