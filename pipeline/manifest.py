"""dataset.json: what a whole dataset says of itself. docs/data-format.md specifies it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.accounting import Account
from pipeline.errors import DatasetError
from pipeline.lineage import Lineage, canonical_digest
from pipeline.shard import ShardRecord

FORMAT = "viaduct/1"


@dataclass(frozen=True)
class Manifest:
    """The content of dataset.json."""

    kind: str
    schema: Mapping[str, str]
    """Column names to type names."""
    rows_per_batch: int
    records: tuple[ShardRecord, ...]
    set_aside: Mapping[int, int]
    """Shards that could not be made: number to rows that came in."""
    pictures: Account
    captions: Account | None
    lineage: Lineage

    @property
    def digest(self) -> str:
        """Covers schema, shards, accounts and lineage; no times, hosts, paths or attempts.

        Files are covered by their digests, not their names, and as they were made: what was erased
        since makes no other dataset of it, so that those made of it still match.
        """
        content = self._content()
        for shard in content["shards"]:
            shard.pop("erased", None)
            for entry in (shard, *shard["attachments"].values()):
                del entry["file"]
                entry.update(entry.pop("made", {}))
        return canonical_digest(content)

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "digest": self.digest, **self._content()}

    def _content(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "schema": dict(self.schema),
            "rows": sum(record.entry.rows for record in self.records),
            "rows_per_batch": self.rows_per_batch,
            "pictures": self.pictures.to_json(),
            "captions": self.captions.to_json() if self.captions else None,
            "set_aside": {str(number): rows for number, rows in sorted(self.set_aside.items())},
            "lineage": self.lineage.to_json(),
            "shards": [record.to_json() for record in self.records],
        }

    @staticmethod
    def from_json(value: Any, name: str) -> "Manifest":
        """Read dataset.json.

        Raises:
            DatasetError: it is damaged, or of a later format.
        """
        try:
            if value["format"] != FORMAT:
                raise DatasetError(f"{name}: format={value['format']!r}, this reads {FORMAT!r}")
            captions = value["captions"]
            manifest = Manifest(
                kind=value["kind"],
                schema=value["schema"],
                rows_per_batch=int(value["rows_per_batch"]),
                records=tuple(ShardRecord.from_json(shard, name) for shard in value["shards"]),
                set_aside={int(number): rows for number, rows in value["set_aside"].items()},
                pictures=Account.from_json(value["pictures"]),
                captions=None if captions is None else Account.from_json(captions),
                lineage=Lineage.from_json(value["lineage"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DatasetError(f"{name}: field missing or wrong: {error}") from error
        if manifest.digest != value.get("digest"):
            raise DatasetError(f"{name}: its digest is not that of its content")
        return manifest
