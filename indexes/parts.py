"""The parts of an index: what it was made of at first, and each addition since, in order."""

from collections.abc import Set
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from indexes.gathering import PICTURES
from indexes.storage import INDEX, IndexManifest, read_manifest
from pipeline.dataset import read_table, why_unpublished
from pipeline.errors import ConfigError, DatasetError
from pipeline.lineage import Lineage
from pipeline.schemas import UID
from pipeline.storage import Folder


@dataclass(frozen=True)
class Part:
    """Pictures that were indexed by one command."""

    folder: Folder
    """Of the index, or of an addition within it."""
    manifest: IndexManifest

    @property
    def num_pictures(self) -> int:
        return sum(shard.num_pictures for shard in self.manifest.shards)

    @property
    def tables(self) -> tuple[tuple[Folder, str], ...]:
        """Its tables of pictures, by folder and file."""
        return tuple((self.folder, shard.files[PICTURES].file) for shard in self.manifest.shards)

    @property
    def pairs_digest(self) -> str:
        """Of the dataset `pairs` whose pictures these are."""
        return {parent.kind: parent.digest for parent in self.manifest.lineage.parents}["pairs"]

    @property
    def lineage(self) -> Lineage:
        """What its own pictures were made of; of an addition without what it was added to."""
        return self.manifest.lineage.without("index")


def read_parts(folder: Folder) -> tuple[Part, ...]:
    """All parts of a published index.

    Raises:
        ConfigError: there is none, it is not finished, or it is an addition itself.
        DatasetError: its index.json or that of an addition is missing or damaged.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise ConfigError(why_unpublished(folder, "index", INDEX))
    if manifest.is_addition:
        raise ConfigError(f"{folder}: is an addition; name the index that it lies in")
    parts = [Part(folder, manifest)]
    for added in manifest.added:
        home = folder / added.folder
        there = read_manifest(home)
        if there is None or there.digest != added.digest:
            found = "is missing" if there is None else f"has digest {there.digest[:16]}"
            raise DatasetError(f"{home}/{INDEX}: {found}, {INDEX} says {added.digest[:16]}")
        parts.append(Part(home, there))
    return tuple(parts)


def indexed(folder: Folder, uids: Set[bytes]) -> frozenset[bytes]:
    """Which of these pictures an index has, those taken down too; raises as `read_parts`."""
    wanted = pa.array(sorted(uids), UID)
    found: set[bytes] = set()
    for part in read_parts(folder):
        for table in part.tables:
            column = read_table(*table, ["uid"]).column("uid")
            found.update(column.filter(pc.is_in(column, value_set=wanted)).to_pylist())
    return frozenset(found)
