"""Captions as a table of their own, a row each, for other tools."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.captions import in_a_line
from pipeline.dataset import Dataset
from pipeline.errors import ConfigError
from pipeline.schemas import CAPTION, SCORED_CAPTION, describe
from pipeline.selection import judges_of_dataset, scores_by
from pipeline.storage import Folder

_TEXTS = ("url", "split", "text", "source", "status")
_KINDS = [describe(pa.schema([("captions", pa.list_(kind))])) for kind in (CAPTION, SCORED_CAPTION)]


def caption_table_schema(judges: Sequence[str]) -> pa.Schema:
    """Columns of a table of captions.

    `uid` in hexadecimal and `ordinal`, the caption's place among those of the picture; texts; by
    each judge the similarity `itc JUDGE` and the match probability `itm JUDGE`, null where it told
    none.
    """
    scores = [(f"{what} {judge}", pa.float32()) for judge in judges for what in ("itc", "itm")]
    texts = [(name, pa.string()) for name in _TEXTS]
    return pa.schema([("uid", pa.string()), ("ordinal", pa.int32()), *texts, *scores])


def caption_table(rows: pa.Table, urls: pa.ChunkedArray | None, judges: Sequence[str]) -> pa.Table:
    """All captions of some rows, kept and rejected (`caption_table_schema`).

    Args:
        rows: with `uid` and `captions`, and maybe `split`.
        urls: of each row; None where nobody knows them.
        judges: names of those whose scores are told.
    """
    captions, row = in_a_line(rows["captions"])
    nothing = pa.nulls(len(rows), pa.string())
    of_rows = {
        "uid": pa.array([uid.hex() for uid in rows["uid"].to_pylist()], pa.string()),
        "url": nothing if urls is None else urls,
        "split": rows["split"] if "split" in rows.column_names else nothing,
    }
    columns = {name: values.take(pa.array(row)) for name, values in of_rows.items()}
    columns["ordinal"] = pa.array(np.arange(len(row)) - np.searchsorted(row, row), pa.int32())
    columns |= {name: pc.struct_field(captions, name) for name in ("text", "source", "status")}
    for judge in judges:
        told = scores_by(judge, pc.struct_field(captions, "scores"))
        for what, values in zip(("itc", "itm"), told, strict=True):
            columns[f"{what} {judge}"] = pa.array(values, from_pandas=True)  # NaN is null
    schema = caption_table_schema(judges)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def write_caption_table(
    dataset: Dataset, beside: Dataset | None, split: str, folder: Folder, name: str
) -> int:
    """Write the captions of a dataset as one Parquet file; returns how many.

    Those of pictures that were taken down, of the dataset or of what lies beside it, are left out.

    Args:
        dataset: of any kind that has captions.
        beside: a dataset side by side with it, which tells the URLs where that has none, and
            which pictures were taken down.
        split: whose captions are written, or `all`.
        folder, name: of the file, which appears whole.

    Raises:
        ConfigError: there are no captions or no splits, or the file cannot be written.
        DatasetError: a shard is missing or damaged.
    """
    schema = dataset.manifest.schema
    if {"captions": schema.get("captions")} not in _KINDS:
        raise ConfigError(f"{dataset.folder}: holds {dataset.kind!r}, which has no captions")
    if split != "all" and "split" not in schema:
        raise ConfigError(f"split: {dataset.folder} holds {dataset.kind!r}, which has no splits")
    told = [one for one in (dataset, beside) if one and "url" in one.manifest.schema]
    judges = list(judges_of_dataset(dataset))
    count = 0
    with folder.temporary() as file:
        with pq.ParquetWriter(file.stream, caption_table_schema(judges)) as writer:
            for number, shard in zip(dataset.records, dataset.shards(), strict=True):
                keep = np.asarray(shard.live)
                if beside is not None:
                    keep = keep & np.asarray(beside.shard(number, columns=["uid"]).live)
                if split != "all":
                    keep = keep & (shard.table["split"].to_numpy() == split)
                mask = pa.array(keep)
                urls = told[0].shard(number).table["url"].filter(mask) if told else None
                table = caption_table(shard.table.filter(mask), urls, judges)
                writer.write_table(table)
                count += len(table)
        file.publish(name)
    return count
