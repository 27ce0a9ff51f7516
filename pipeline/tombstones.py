"""Tombstones: pictures taken down, listed in each dataset and applied by every reader at once."""

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import DatasetError
from pipeline.schemas import UID
from pipeline.storage import Folder

FILE = "tombstones.json"


def read_tombstones(folder: Folder) -> frozenset[bytes]:
    """The uids taken down from the dataset in `folder`.

    Raises:
        DatasetError: the list is damaged.
    """
    try:
        value = folder.read_json(FILE)
        return frozenset(bytes.fromhex(uid) for uid in (value or {"uids": []})["uids"])
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{folder}/{FILE}: field 'uids' is damaged: {error}") from error


def add_tombstones(folder: Folder, uids: Iterable[bytes]) -> int:
    """Take pictures down; those that are down already stay so. Returns how many are down now.

    The dataset's shards and digest stay as they are.
    """
    uids = list(uids)
    wrong = [uid for uid in uids if len(uid) != UID.byte_width]
    if wrong:
        raise DatasetError(f"{folder}/{FILE}: a uid has {UID.byte_width} bytes, not {wrong[0]!r}")
    with folder.locked(".tombstones.lock"):
        down = read_tombstones(folder) | set(uids)
        folder.publish_json(FILE, {"uids": sorted(uid.hex() for uid in down)})
    return len(down)


def live_mask(uids: pa.ChunkedArray, tombstones: frozenset[bytes]) -> pa.ChunkedArray:
    """bool[rows]: which of these rows are not taken down."""
    down = pa.array(sorted(tombstones), type=UID)
    return pc.invert(pc.is_in(uids, value_set=down))
