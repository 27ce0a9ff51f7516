"""What failed in an earlier `raw`, as a source: to be fetched again into another one."""

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset import Dataset
from pipeline.errors import ConfigError
from pipeline.fetch import FetchConfig, Fetcher, HttpFetcher
from pipeline.schemas import extra_type
from pipeline.sources import Source
from pipeline.tombstones import live_mask

MAY_PASS = (
    *("dns", "refused", "timeout", "tls", "connection", "proxy", "truncated"),
    *("http_408", "http_425", "http_429", "http_5*", "deadline", "internal"),
)
"""Classes of failure that another day may not have. A page that is gone (http_404), a host that
opts out and bytes that are no picture will be the same again."""


class RetrySource:
    """The rows of a ledger whose outcome is of the classes asked for, as they stood in the source.

    They keep their uids, captions, further columns and numbers (`source_row`). Pictures that were
    taken down are not fetched again.
    """

    def __init__(self, raw: Dataset, classes: tuple[str, ...], given: Source | None) -> None:
        """Choose the outcomes.

        Args:
            raw: a dataset of kind `raw`.
            classes: outcomes, without `failed:` or in full, `*` for anything; empty is MAY_PASS.
            given: the source in which the locations of `raw` mean something; URLs need none.

        Raises:
            ConfigError: `raw` has no such class, or its locations are none of this source's.
        """
        self.raw = raw
        self.classes = classes or MAY_PASS
        lost = raw.manifest.pictures.dropped
        for pattern in classes:
            if not any(_is_of(pattern, outcome) for outcome in lost):
                raise ConfigError(
                    f"retry_classes: {pattern!r} is no outcome of {raw.folder}; there are "
                    f"{', '.join(sorted(lost)) or 'none: every row was kept'}"
                )
        self.locations = raw.manifest.lineage.config.get("locations", "url")
        if given is None and self.locations != "url":
            raise ConfigError(
                f"source: {raw.folder} was made of a source's {self.locations}s; name the source "
                f"too, in which they lie"
            )
        if given is not None and given.locations != self.locations:
            raise ConfigError(
                f"source: has {given.locations}s, but {raw.folder} was made of {self.locations}s"
            )
        ledgers = (raw.attachment(number, "ledger").schema for number in raw.records)
        self.extra = next(map(extra_type, ledgers), None)
        self._given = given

    @property
    def open_fetcher(self) -> Callable[[FetchConfig], Fetcher]:
        return HttpFetcher if self._given is None else self._given.open_fetcher

    def digest(self) -> str:
        return self.raw.digest

    def tables(self) -> Iterator[pa.Table]:
        for number in self.raw.records:
            ledger = self.raw.attachment(number, "ledger")
            again = pc.is_in(ledger.column("outcome"), value_set=self._outcomes())
            live = live_mask(ledger.column("uid"), self.raw.tombstones)
            yield ledger.filter(pc.and_(again, live)).drop_columns("outcome")

    def _outcomes(self) -> pa.Array:
        lost = self.raw.manifest.pictures.dropped
        chosen = [name for name in lost if any(_is_of(pattern, name) for pattern in self.classes)]
        return pa.array(sorted(chosen), pa.string())


def _is_of(pattern: str, outcome: str) -> bool:
    """Whether an outcome of the ledger is of a class."""
    if outcome == "set_aside":  # such rows are in no ledger
        return False
    return fnmatchcase(outcome, pattern) or fnmatchcase(outcome, f"failed:{pattern}")
