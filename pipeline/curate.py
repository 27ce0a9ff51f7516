"""The third phase of curate: the pairs of one output shard, gathered as the plan says."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from pipeline.accounting import Account
from pipeline.captions import Caption, judge, unite
from pipeline.errors import ConfigError
from pipeline.schemas import KEPT, PAIRS, RAW, TAKEN_DOWN, with_extra


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """How pictures are split; by what they show, so that all that are alike are in one split."""

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
    """`train`, `validation` or `test`, by a salted hash of a pixel digest (of a cluster's best)."""
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


def gather(
    plan: pa.Table,
    open_input: Callable[[int], pa.Table],
    split: SplitConfig,
    is_down: Callable[[int, bytes], bool] = lambda number, uid: False,
    extra: pa.StructType | None = None,
    filter_captions: Callable[[list[list[Caption]]], list[list[Caption]]] = lambda captions: (
        captions
    ),
) -> Curated:
    """Make one output shard.

    Args:
        plan: the plan's rows for this shard, in order.
        open_input: number of an input shard to its rows (`schemas.RAW`).
        split: see there.
        is_down: whether a uid was taken down from an input shard after the plan was made. Copies of
            a kept picture that is down go with it.
        extra: the type of the inputs' column `extra`, where they have one. That of the kept picture
            stays; of those united with it the captions alone.
        filter_captions: rejects captions of kept pictures, which are normalised and united.
    """
    tables = {number: open_input(number) for number in set(plan.column("input_shard").to_pylist())}
    groups = _groups(plan, is_down)
    incoming = _take(plan, tables, RAW, ["captions"]).column("captions").to_pylist()
    outcomes: list[str] = []
    captions: list[list[Caption]] = []
    dropped: Counter[str] = Counter()
    for first, group in groups:
        outcomes += group
        texts = []
        for number, outcome in enumerate(group, first):
            if outcome == TAKEN_DOWN:
                dropped[f"picture:{TAKEN_DOWN}"] += len(incoming[number] or [])
            else:
                texts += [judge(caption) for caption in incoming[number]]
        if group[0] == KEPT:
            united, num_equal = unite(texts)
            captions.append(united)
            dropped["duplicate"] += num_equal

    kept = plan.filter(pa.array([outcome == KEPT for outcome in outcomes], pa.bool_()))
    raw = with_extra(RAW, extra)
    pairs = _take(kept, tables, raw, raw.names)
    columns = {name: pairs.column(name) for name in raw.names}
    captions = filter_captions(captions)
    columns["captions"] = pa.array(captions, RAW.field("captions").type)
    clusters = kept.column("cluster").to_pylist()
    columns["split"] = pa.array([split_of(digest, split) for digest in clusters], pa.string())
    judged = Account.of(caption["status"] for united in captions for caption in united)
    return Curated(
        pairs=pa.table(columns, schema=with_extra(PAIRS, extra)),
        pictures=Account.of(outcomes),
        captions=Account.total([judged, Account.all_dropped(dropped)]),
    )


def _groups(
    plan: pa.Table, is_down: Callable[[int, bytes], bool]
) -> Iterator[tuple[int, list[str]]]:
    """Each kept picture with its copies: the number of its row in the plan, and their outcomes."""
    outcomes = plan.column("outcome").to_pylist()
    inputs, uids = plan.column("input_shard").to_pylist(), plan.column("uid").to_pylist()
    down = [is_down(number, uid) for number, uid in zip(inputs, uids, strict=True)]
    kept = [number for number, outcome in enumerate(outcomes) if outcome == KEPT]
    for first, end in pairwise([*kept, len(outcomes)]):
        yield (
            first,
            [
                TAKEN_DOWN if down[first] or down[row] else outcomes[row]
                for row in range(first, end)
            ],
        )


def _take(
    plan: pa.Table, tables: Mapping[int, pa.Table], raw: pa.Schema, columns: list[str]
) -> pa.Table:
    """The input rows that the plan names, in its order; nothing else is copied."""
    inputs = plan.column("input_shard").to_numpy()
    rows = plan.column("input_row").to_numpy()
    order = np.argsort(inputs, kind="stable")
    parts = [raw.empty_table().select(columns)]
    for number in np.unique(inputs).tolist():
        wanted = pa.array(rows[order][inputs[order] == number], pa.int64())
        parts.append(tables[number].select(columns).take(wanted))
    return pa.concat_tables(parts).take(pa.array(np.argsort(order), pa.int64()))
