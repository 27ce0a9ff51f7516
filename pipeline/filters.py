"""Filters: what pictures and captions have to be; each with its configuration and its reason."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa

from pipeline.errors import ConfigError


class Filter(Protocol):
    """A frozen dataclass of what is asked of each row of a table."""

    reason: ClassVar[str]
    """Outcome or status of the rows that do not meet it."""

    def refuses(self, table: pa.Table) -> pa.BooleanArray | pa.ChunkedArray:
        """bool[N]: the rows that do not meet it, none of them null."""
        ...


def judged(table: pa.Table, filters: Sequence[Filter], passed: str) -> list[str]:
    """Each row's reason from the first filter that refuses it, or `passed`."""
    reasons = np.full(table.num_rows, passed, dtype=object)
    left = np.arange(table.num_rows)
    for each in filters:
        refused = np.asarray(each.refuses(table.take(pa.array(left))), dtype=bool)
        reasons[left[refused]] = each.reason
        left = left[~refused]
    return reasons.tolist()


def described(filters: Sequence[Filter]) -> list[dict[str, Any]]:
    """The filters with all their numbers, as the lineage holds them: a name alone can change."""
    return [{"reason": each.reason, **asdict(each)} for each in filters]  # type: ignore[call-overload]


def at_least(name: str, value: float, least: float) -> None:
    """Raises ConfigError where a filter's number is below what makes sense."""
    if not value >= least:
        raise ConfigError(f"{name}: {value} is less than {least}")
