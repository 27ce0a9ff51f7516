"""What a dataset was made from and how: what its digest covers besides its bytes."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Parent:
    """A source or a dataset that another one was made from."""

    kind: str
    digest: str

    def to_json(self) -> dict[str, str]:
        return {"kind": self.kind, "digest": self.digest}


@dataclass(frozen=True)
class Lineage:
    """The job, the part of its configuration that changes the output, and the parents.

    No times, hosts, paths, numbers of workers or attempts: two runs of one job on one input have
    equal lineage.
    """

    job: str
    config: Mapping[str, Any]
    parents: tuple[Parent, ...] = ()
    frozen: Mapping[str, Any] = field(default_factory=dict)
    """Frozen models by role, such as `encoder`, each with its name and weights digest."""

    def to_json(self) -> dict[str, Any]:
        return {
            "job": self.job,
            "config": dict(self.config),
            "parents": [parent.to_json() for parent in self.parents],
            "frozen": dict(self.frozen),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "Lineage":
        """Raises KeyError or TypeError where `value` is no lineage."""
        parents = tuple(Parent(p["kind"], p["digest"]) for p in value["parents"])
        return Lineage(value["job"], value["config"], parents, value["frozen"])

    def without(self, kind: str) -> "Lineage":
        """The same without its parents of a kind."""
        others = tuple(parent for parent in self.parents if parent.kind != kind)
        return replace(self, parents=others)

    def difference(self, other: "Lineage") -> str:
        """The first field in which the two differ, with both values; empty if they are equal."""
        mine, theirs = _flat(self.to_json()), _flat(other.to_json())
        for key in sorted(mine.keys() | theirs.keys()):
            if mine.get(key) != theirs.get(key):
                return f"{key}: {mine.get(key, 'nothing')} there, {theirs.get(key, 'nothing')} now"
        return ""


def canonical_digest(value: Any) -> str:
    """SHA-256 of a value's canonical JSON: keys sorted, no spaces, ASCII."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested mappings and sequences as one mapping of dotted names to leaves, in JSON.

    In JSON, because 1, 1.0 and true are one value to Python and three to a digest.
    """
    if isinstance(value, (list, tuple)) and value:
        value = {str(number): item for number, item in enumerate(value)}
    if not isinstance(value, Mapping) or not value:
        return {prefix: json.dumps(value)}
    flat: dict[str, str] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
    return flat
