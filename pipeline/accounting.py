"""Both accountings: of pictures and of captions, each in = kept + dropped by reason."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import DatasetError


@dataclass(frozen=True)
class Account:
    """How many came in, how many were kept, and why the others were not.

    Raises:
        DatasetError: the counts do not add up, or one of them is negative.
    """

    num_in: int
    num_kept: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Reason to count. A reason is `failed:<class>`, `rejected:<reason>` or one word."""

    def __post_init__(self) -> None:
        counts = [self.num_in, self.num_kept, *self.dropped.values()]
        if min(counts) < 0 or self.num_in != self.num_kept + sum(self.dropped.values()):
            raise DatasetError(
                f"account does not add up: in={self.num_in} kept={self.num_kept} "
                f"dropped={dict(self.dropped)}"
            )

    @staticmethod
    def of(outcomes: Iterable[str], *, kept: str = "kept") -> "Account":
        """Count outcomes; those equal to `kept` were kept, the others are reasons."""
        counts = Counter(outcomes)
        num_kept = counts.pop(kept, 0)
        return Account(num_kept + sum(counts.values()), num_kept, dict(sorted(counts.items())))

    @staticmethod
    def all_kept(count: int) -> "Account":
        return Account(count, count)

    @staticmethod
    def all_dropped(reasons: Mapping[str, int]) -> "Account":
        return Account(sum(reasons.values()), 0, dict(reasons))

    @staticmethod
    def of_set_aside(pictures: int, captions: int) -> tuple["Account", "Account"]:
        """The accounts of the pictures and captions of shards that could not be made."""
        return (
            Account.all_dropped({"set_aside": pictures}),
            Account.all_dropped({"picture:set_aside": captions}),
        )

    @staticmethod
    def total(accounts: Iterable["Account"]) -> "Account":
        """The sum of several, their reasons sorted."""
        num_in = num_kept = 0
        dropped: Counter[str] = Counter()
        for account in accounts:
            num_in += account.num_in
            num_kept += account.num_kept
            dropped.update(account.dropped)
        return Account(num_in, num_kept, {k: v for k, v in sorted(dropped.items()) if v})

    def to_json(self) -> dict[str, Any]:
        return {"in": self.num_in, "kept": self.num_kept, "dropped": dict(self.dropped)}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "Account":
        """Raises KeyError or TypeError where `value` is no account, DatasetError as above."""
        return Account(int(value["in"]), int(value["kept"]), dict(value["dropped"]))
