"""The pictures that an index has already: an addition to it leaves them out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset import Dataset, read_table
from pipeline.schemas import UID
from pipeline.storage import Folder


@dataclass(frozen=True)
class Known:
    """What is known of an index when an addition to it is begun."""

    digest: str
    """Of the index as it was then."""
    tables: tuple[tuple[Folder, str], ...]
    """Its tables of pictures, by folder and file; those taken down are in them too."""

    def rows(self, pairs: Dataset, numbers: Sequence[int]) -> dict[int, np.ndarray]:
        """For each of these shards of `pairs` bool[rows]: which pictures the index has.

        Raises:
            DatasetError: a shard or a table is missing or damaged.
        """
        own = [read_table(*table, ["uid"]).column("uid") for table in self.tables]
        asked = [pairs.shard(number, columns=["uid"]).table.column("uid") for number in numbers]
        # All at once, for whatever is looked up in is hashed for each call.
        is_known = pc.is_in(_joined(asked), value_set=_joined(own)).to_numpy(zero_copy_only=False)
        ends = np.cumsum([len(column) for column in asked])
        return dict(zip(numbers, np.split(is_known, ends[:-1]), strict=True))


def _joined(columns: Sequence[pa.ChunkedArray]) -> pa.Array:
    chunks = [chunk for column in columns for chunk in column.chunks]
    return pa.chunked_array(chunks, UID).combine_chunks()
