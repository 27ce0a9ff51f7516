"""A dataset while a job fills it; killed and begun again, it keeps what is committed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.accounting import Account
from pipeline.dataset import DRAFT, Dataset
from pipeline.errors import ConfigError, DatasetError
from pipeline.lineage import Lineage
from pipeline.manifest import FORMAT, Manifest
from pipeline.schemas import ROWS_PER_BATCH, describe
from pipeline.shard import MANIFEST, ShardRecord, all_committed
from pipeline.storage import Folder


@dataclass(frozen=True)
class Draft:
    """A dataset that a job is filling; killed and begun again, it keeps what is committed."""

    folder: Folder
    kind: str
    schema: pa.Schema
    lineage: Lineage

    @staticmethod
    def begin(folder: Folder, kind: str, schema: pa.Schema, lineage: Lineage) -> "Draft":
        """Begin a dataset, or go on with one that the same job began here.

        Raises:
            ConfigError: the folder holds something else, or what another configuration began;
                the first difference is named.
        """
        draft = Draft(folder, kind, schema, lineage)
        there = _begun_as(folder)
        if there is None:
            others = [name for name in folder.entries() if not name.startswith(".")]
            if others:
                raise ConfigError(f"{folder}: holds {others[0]} and no dataset; choose another")
            folder.create()
            folder.publish_json(DRAFT, draft._intent())
            return draft
        kind_there, lineage_there = there
        if kind_there != kind:
            raise ConfigError(f"{folder}: holds {kind_there!r}, not {kind!r}; choose another")
        if difference := lineage_there.difference(lineage):
            raise ConfigError(f"{folder}: was begun otherwise ({difference}); choose another")
        return draft

    @property
    def rows_per_batch(self) -> int:
        return ROWS_PER_BATCH[self.kind]

    def committed(self) -> dict[int, ShardRecord]:
        """The records of the shards that are here and whole, by number."""
        return all_committed(self.folder)

    def published(self) -> Dataset | None:
        """The dataset if it is published, whether or not all its files are still there."""
        return Dataset.open(self.folder) if self.folder.size(MANIFEST) is not None else None

    def whole(self) -> Dataset | None:
        """The dataset if it is published and all its files are there: nothing is left to do."""
        published = self.published()
        if published is None:
            return None
        here = self.committed()
        whole = all(here.get(number) == record for number, record in published.records.items())
        return published if whole else None

    def publish(
        self,
        records: Iterable[ShardRecord],
        *,
        set_aside: Mapping[int, int] | None = None,
        captions_set_aside: int = 0,
        pictures: Sequence[Account] = (),
        captions: Sequence[Account] = (),
    ) -> Dataset:
        """Write dataset.json, after which the dataset is whole and never changes.

        Args:
            records: of all shards.
            set_aside: shards that could not be made: number to rows that came in.
            captions_set_aside: captions that came in for them.
            pictures, captions: what belongs to no shard, such as rows left out by a plan.

        Raises:
            DatasetError: it was published before with other shards.
        """
        records = tuple(sorted(records, key=lambda record: record.number))
        set_aside = dict(set_aside or {})
        lost, lost_captions = Account.of_set_aside(sum(set_aside.values()), captions_set_aside)
        has_captions = "captions" in self.schema.names
        caption_accounts = [r.captions for r in records if r.captions is not None]
        manifest = Manifest(
            kind=self.kind,
            schema=describe(self.schema),
            rows_per_batch=self.rows_per_batch,
            records=records,
            set_aside=set_aside,
            pictures=Account.total([*(r.pictures for r in records), lost, *pictures]),
            captions=(
                Account.total([*caption_accounts, lost_captions, *captions])
                if has_captions
                else None
            ),
            lineage=self.lineage,
        )
        earlier = self.published()
        if earlier is not None and earlier.digest != manifest.digest:
            raise DatasetError(
                f"{self.folder}: was rebuilt otherwise: digest {earlier.digest[:16]} is published, "
                f"{manifest.digest[:16]} came now"
            )
        self.folder.publish_json(MANIFEST, manifest.to_json())
        self.folder.remove_file(DRAFT)
        self.folder.sweep(*{name for record in records for name in record.attachments})
        return Dataset.open(self.folder)

    def _intent(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "kind": self.kind,
            "schema": describe(self.schema),
            "lineage": self.lineage.to_json(),
        }


def _begun_as(folder: Folder) -> tuple[str, Lineage] | None:
    """Kind and lineage of what the folder holds, finished or not; None where it holds nothing."""
    if folder.size(MANIFEST) is not None:
        manifest = Dataset.open(folder).manifest
        return manifest.kind, manifest.lineage
    value = folder.read_json(DRAFT)
    try:
        return None if value is None else (value["kind"], Lineage.from_json(value["lineage"]))
    except (KeyError, TypeError) as error:
        raise DatasetError(f"{folder}/{DRAFT}: field missing or wrong: {error}") from error
