"""Further columns of a source, carried along in the column `extra`: `--keep license,source`.

Numbers and truth values of a table that declares them keep their kind; whatever else a source holds
becomes text, and JSON where it is no text.
"""

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.dataset import Dataset
from pipeline.errors import ConfigError, DatasetError
from pipeline.schemas import EXTRA, RAW, extra_type, with_extra
from pipeline.source_rows import is_null, text


def kept_type(declared: pa.DataType) -> pa.DataType:
    """As what a column is carried along: int64, float64, bool or text."""
    if pa.types.is_integer(declared) and declared != pa.uint64():
        return pa.int64()
    if pa.types.is_floating(declared):
        return pa.float64()
    return declared if pa.types.is_boolean(declared) else pa.string()


def text_fields(names: Sequence[str]) -> pa.StructType | None:
    """The type of `extra` where a source declares nothing; None without names."""
    return pa.struct([(name, pa.string()) for name in names]) if names else None


def extra_column(cells: Mapping[str, Sequence[Any]], kind: pa.StructType) -> pa.StructArray:
    """The column `extra` out of cells as they came.

    Args:
        cells: values by name; `kind`'s names are taken.
        kind: of the column.

    Raises:
        ArrowException: a cell is none of its declared kind.
    """
    arrays = []
    for field in kind:
        values = cells[field.name]
        as_text = field.type == pa.string()
        arrays.append(pa.array(map(_text, values) if as_text else values, field.type))
    return pa.StructArray.from_arrays(arrays, fields=list(kind))


def _text(cell: Any) -> str | None:
    if is_null(cell):
        return None
    if isinstance(cell, (str, bytes)):
        return text(cell)
    return text(json.dumps(cell, ensure_ascii=False, default=str))


def extra_of(raw: Dataset) -> pa.StructType | None:
    """The type of a dataset's `extra`, from the first shard that can be read."""
    for number in raw.records if EXTRA in raw.manifest.schema else ():
        with contextlib.suppress(DatasetError):  # who reads its pictures says so
            return extra_type(raw.shard(number).table.schema)
    return None


def united_type(kinds: Iterable[tuple[str, pa.StructType | None]]) -> pa.StructType | None:
    """The type that holds the columns of all; None where there are none.

    Args:
        kinds: for each dataset its name and the type of its `extra`.

    Raises:
        ConfigError: two have a column of one name and of different types.
    """
    fields: dict[str, tuple[str, pa.Field]] = {}
    for owner, kind in kinds:
        for field in kind or ():
            first, other = fields.setdefault(field.name, (owner, field))
            if other.type != field.type:
                raise ConfigError(
                    f"{first} and {owner}: both kept {field.name!r}, as {other.type} and as "
                    f"{field.type}"
                )
    return pa.struct([field for _, field in fields.values()]) if fields else None


def widened(raw: pa.Table, kind: pa.StructType | None) -> pa.Table:
    """Rows of `raw` with an `extra` of this type; what they lack is null."""
    if kind is None or extra_type(raw.schema) == kind:
        return raw
    nulls = pa.nulls(raw.num_rows)
    had: Mapping[str, pa.Array] = {}
    if EXTRA in raw.schema.names:
        struct = raw.column(EXTRA).combine_chunks()
        had = {field.name: struct.field(field.name) for field in struct.type}
    arrays = [had.get(field.name, nulls).cast(field.type) for field in kind]
    extra = pa.StructArray.from_arrays(arrays, fields=list(kind))
    columns = [raw.column(name) for name in RAW.names]
    return pa.table([*columns, extra], schema=with_extra(RAW, kind))
