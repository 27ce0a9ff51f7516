"""Further columns are carried along with their values, from whatever they came in."""

import datetime
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from pipeline.errors import ConfigError
from pipeline.extra import extra_column, kept_type, united_type, widened
from pipeline.schemas import RAW, SOURCE, with_extra
from pipeline.sources import open_source
from pipeline.url_tables import SourceColumns

STRINGS = pa.struct([("license", pa.string())])
BOTH = pa.struct([("license", pa.string()), ("score", pa.float64())])


def extras(path: Path, *keep: str) -> list[dict]:
    source = open_source(str(path), SourceColumns(keep=keep))
    tables = list(source.tables())
    assert all(table.schema.equals(with_extra(SOURCE, source.extra)) for table in tables)
    return [row["extra"] for table in tables for row in table.to_pylist()]


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_declared_numbers_keep_their_kind_and_the_rest_is_text(tmp_path, suffix):
    columns = {
        "url": ["http://a/1", "http://a/2"],
        "caption": ["x", "y"],
        "width": pa.array([3, None], pa.int16()),
        "score": pa.array([0.5, None], pa.float32()),
        "nsfw": [None, True],
        "tags": [["a", "\u00e9"], None],
        "blob": [b"caf\xe9", None],
        "day": [datetime.date(2026, 1, 2), None],
    }
    write = pa.parquet.write_table if suffix == ".parquet" else pa.feather.write_feather
    write(pa.table(columns), str(tmp_path / f"t{suffix}"))
    kept = extras(tmp_path / f"t{suffix}", "width, score", "nsfw,tags", "blob", "day", "caption")
    assert kept == [
        {
            **{"width": 3, "score": 0.5, "nsfw": None, "tags": '["a", "\u00e9"]'},
            **{"blob": "caf\ufffd", "day": '"2026-01-02"', "caption": "x"},
        },
        {
            **{"width": None, "score": None, "nsfw": True, "tags": None},
            **{"blob": None, "day": None, "caption": "y"},
        },
    ]


def test_a_csv_and_a_jsonl_give_text(tmp_path):
    (tmp_path / "t.csv").write_text('url,caption,license,n\nu,c,"cc, by",3\nv,d,,\n')
    assert extras(tmp_path / "t.csv", "license", "n") == [
        {"license": "cc, by", "n": "3"},
        {"license": "", "n": ""},
    ]
    rows = [
        {"license": "a"},
        {"license": {"b": [1, None]}},
        {},
        {"license": None},
        {"license": 2.5},
    ]
    lines = [json.dumps({"url": "u", "caption": "c", **row}) + "\n" for row in rows]
    (tmp_path / "t.jsonl").write_text("".join(lines) + '{"url": "u", "license": "\\ud800"}\n')
    kept = [row["license"] for row in extras(tmp_path / "t.jsonl", "license")]
    assert kept == ["a", '{"b": [1, null]}', None, None, "2.5", "?"]


@pytest.mark.parametrize("form", ["coco", "karpathy"])
def test_fields_of_an_annotation_are_kept(tmp_path, form):
    images = [{"id": 1, "license": 3, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]
    if form == "karpathy":
        images = [{"filename": i.pop("file_name"), "sentences": [], **i} for i in images]
    content = {"images": images} | ({"annotations": []} if form == "coco" else {})
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert extras(tmp_path / "a.json", "license") == [{"license": "3"}, {"license": None}]
    with pytest.raises(ConfigError, match=r"a\.json: no picture has the field 'licence'"):
        extras(tmp_path / "a.json", "licence")


def test_what_is_not_there_is_named(tmp_path):
    (tmp_path / "t.csv").write_text("url,caption\nu,c\n")
    with pytest.raises(ConfigError, match=r"t\.csv: has no column 'license', only"):
        extras(tmp_path / "t.csv", "license")
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.jpg").touch()
    with pytest.raises(ConfigError, match="is a folder of pictures, which has no columns"):
        extras(tmp_path / "p", "license")


def test_tables_that_declare_another_kind_are_named(tmp_path):
    for name, score in (("a", 1.5), ("b", "high")):
        table = pa.table({"url": ["u"], "caption": ["c"], "score": [score]})
        pa.parquet.write_table(table, tmp_path / f"{name}.parquet")
    with pytest.raises(ConfigError, match=r"b\.parquet: "):
        extras(tmp_path, "score")


def test_what_is_kept_is_in_the_digest(tmp_path):
    (tmp_path / "t.csv").write_text("url,caption,a,b\nu,c,1,2\n")
    names = [(), ("a",), ("b",), ("a", "b"), ("b", "a")]
    path = str(tmp_path / "t.csv")
    assert len({open_source(path, SourceColumns(keep=keep)).digest() for keep in names}) == 5


def test_numbers_that_no_int64_holds_are_text():
    assert kept_type(pa.uint64()) == pa.string()
    column = extra_column({"n": [2**64 - 1]}, pa.struct([("n", kept_type(pa.uint64()))]))
    assert column.to_pylist() == [{"n": str(2**64 - 1)}]


def test_the_columns_of_several_raws_are_united():
    assert united_type([]) is None
    assert united_type([("a", None), ("b", None)]) is None
    assert united_type([("a", STRINGS), ("b", None), ("c", BOTH)]) == BOTH
    other = pa.struct([("license", pa.int64())])
    with pytest.raises(ConfigError, match="a and c: both kept 'license', as string and as int64"):
        united_type([("a", STRINGS), ("b", None), ("c", other)])


def test_what_a_raw_lacks_is_null():
    row = {"uid": bytes(16), "captions": []}
    plain = pa.Table.from_pylist([row], RAW)
    with_license = pa.Table.from_pylist(
        [row | {"extra": {"license": "cc"}}], with_extra(RAW, STRINGS)
    )
    assert widened(plain, None) is plain
    for table, license_ in ((plain, None), (with_license, "cc")):
        wide = widened(table, BOTH)
        assert wide.schema.equals(with_extra(RAW, BOTH))
        assert wide.column("extra").to_pylist() == [{"license": license_, "score": None}]
