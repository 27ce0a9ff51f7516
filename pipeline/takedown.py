"""Takedown: from what somebody asks to be removed to tombstones in every dataset that holds it."""

import string
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from pipeline.dataset import Dataset
from pipeline.errors import ConfigError
from pipeline.plan import plan_beside
from pipeline.schemas import UID
from pipeline.storage import Folder
from pipeline.uids import uid_of, uid_of_url


@dataclass(frozen=True)
class Wanted:
    """What a list names."""

    uids: Mapping[bytes, str]
    """uid to the entry that means it; an entry may mean several, as a URL and as a path."""

    @staticmethod
    def read(lines: Iterable[str], name: str) -> "Wanted":
        """Read a list: a uid (32 hexadecimal digits), a URL or a path of a source in each line.

        Raises:
            ConfigError: there is no entry.
        """
        uids: dict[bytes, str] = {}
        for entry in filter(None, map(str.strip, lines)):
            if len(entry) == 2 * UID.byte_width and set(entry) <= set(string.hexdigits):
                uids[bytes.fromhex(entry)] = entry
            else:
                uids[uid_of_url(entry)] = uids[uid_of(entry)] = entry
        if not uids:
            raise ConfigError(f"{name}: names nothing to take down")
        return Wanted(uids)

    def unmatched(self, found: Set[bytes]) -> list[str]:
        """Entries of which no uid was found, in the list's order."""
        matched = {self.uids[uid] for uid in found & self.uids.keys()}
        return [entry for entry in dict.fromkeys(self.uids.values()) if entry not in matched]


def folders_with(folder: Folder, *names: str) -> Iterator[tuple[Folder, str]]:
    """The folders at or below one that hold one of these files, each with the first it holds.

    Below such a folder, and in folders whose name begins with a dot, nothing is looked for.
    """
    for name in names:
        if folder.size(name) is not None:
            yield folder, name
            return
    selector = pafs.FileSelector(folder.path, allow_not_found=True)
    for info in sorted(folder.fs.get_file_info(selector), key=lambda info: info.base_name):
        if info.type == pafs.FileType.Directory and not info.base_name.startswith("."):
            yield from folders_with(folder / info.base_name, *names)


def with_copies(pairs: Dataset, uids: Set[bytes]) -> frozenset[bytes]:
    """These uids and those of the pictures that curate united with them, by the plan it left."""
    plan = plan_beside(pairs)
    if plan is None:
        return frozenset(uids)
    plan = plan.select(["uid", "output_shard", "output_row"])
    plan = plan.filter(pc.is_valid(plan.column("output_shard")))
    place = pc.add(
        pc.shift_left(plan.column("output_shard").cast(pa.int64()), 32),
        plan.column("output_row").cast(pa.int64()),
    )
    named = pc.is_in(plan.column("uid"), value_set=pa.array(sorted(uids), UID))
    copies = plan.filter(pc.is_in(place, value_set=place.filter(named).combine_chunks()))
    return frozenset(uids) | frozenset(copies.column("uid").to_pylist())


def found_in(dataset: Dataset, uids: Set[bytes]) -> frozenset[bytes]:
    """Which of these uids a dataset has, be it only in the ledger of `raw`.

    Raises:
        DatasetError: a shard is missing or damaged.
    """
    wanted = pa.array(sorted(uids), UID)
    found: set[bytes] = set()
    for number, record in dataset.records.items():
        tables = [dataset.shard(number).table]
        tables += [dataset.attachment(number, name) for name in record.attachments]
        for table in tables:
            column = table.column("uid")
            found.update(column.filter(pc.is_in(column, value_set=wanted)).to_pylist())
    return frozenset(found)
