"""Many tables are one source, wherever they lie and however they are compressed."""

import logging
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet
import pytest

from pipeline.errors import ConfigError
from pipeline.sources import open_source
from pipeline.uids import uid_of
from pipeline.url_tables import SourceColumns, TableSource

PLAIN = SourceColumns()
COMPRESSED = [".csv.gz", ".tsv.zst", ".jsonl.gz", ".jsonl.zst"]


def write(path: Path, rows: range, column: str = "url") -> Path:
    """A table of `rows` in the format and compression that the path's endings say."""
    lines = [f'"http://a.org/{row}.jpg","caption, of\n{row}"' for row in rows]
    if ".jsonl" in path.suffixes:
        text = "".join(
            f'{{"{column}": "http://a.org/{row}.jpg", "caption": "caption, of\\n{row}"}}\n'
            for row in rows
        )
    else:
        text = "\n".join([f"{column},caption", *lines]) + "\n"
        text = text.replace('","', '"\t"').replace("l,c", "l\tc") if ".tsv" in path.name else text
    if path.suffix == ".parquet":
        table = pa.table(
            {
                column: [f"http://a.org/{row}.jpg" for row in rows],
                "caption": [f"caption, of\n{row}" for row in rows],
            }
        )
        pa.parquet.write_table(table, path, row_group_size=max(7, len(rows) // 4))
        return path
    with pa.output_stream(path) as stream:  # compresses by the name
        stream.write(text.encode())
    return path


def numbers(location: str | Path, columns: SourceColumns = PLAIN) -> list[int]:
    """Row numbers in the order in which the source has them."""
    rows = [r for t in open_source(str(location), columns).tables() for r in t.to_pylist()]
    found = [int(row["url"].removeprefix("http://a.org/").removesuffix(".jpg")) for row in rows]
    assert [row["captions"] for row in rows] == [[f"caption, of\n{number}"] for number in found]
    return found


@pytest.mark.parametrize("suffix", COMPRESSED)
def test_a_compressed_table_is_the_table(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr("pipeline.table_files._BLOCK_BYTES", 500)
    packed = write(tmp_path / f"t{suffix}", range(300))
    assert numbers(packed) == list(range(300))
    plain = write(tmp_path / f"t{Path(suffix).stem}", range(300))
    assert open_source(str(packed), PLAIN).digest() == open_source(str(plain), PLAIN).digest()


@pytest.mark.parametrize("suffix", COMPRESSED)
def test_a_compressed_table_that_is_cut_is_named(tmp_path, suffix):
    path = write(tmp_path / f"t{suffix}", range(50_000))
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ConfigError) as caught:
        numbers(path)
    assert str(caught.value).startswith(f"{path}: cannot be read: ")


def test_a_parquet_is_not_compressed_as_a_whole(tmp_path):
    path = write(tmp_path / "t.parquet", range(3)).rename(tmp_path / "t.parquet.gz")
    with pytest.raises(ConfigError, match=r"t\.parquet\.gz: is '\.gz'; one of \.parquet, "):
        open_source(str(path), PLAIN)


def test_several_tables_are_read_in_the_order_of_their_names(tmp_path):
    parts = [("c.parquet", range(5, 30)), ("a.parquet", range(5)), ("b.parquet", range(0))]
    for name, rows in parts:
        write(tmp_path / name, rows)
    assert numbers(tmp_path) == numbers(tmp_path / "*.parquet") == list(range(30))
    write(tmp_path / "d.csv.gz", range(30, 33))
    assert numbers(tmp_path / "*") == list(range(33))


def test_the_digest_of_several_tables_covers_each_and_their_order(tmp_path):
    def digest() -> str:
        return open_source(str(tmp_path), PLAIN).digest()

    a, b = (write(tmp_path / name, range(n, n + 3)) for n, name in enumerate(("a.csv", "b.csv")))
    digests = {digest()}
    a.rename(tmp_path / "c.csv")
    digests.add(digest())
    (tmp_path / "c.csv").unlink()
    digests.add(digest())
    write(b, range(7))
    digests.add(digest())
    assert len(digests) == 4


def test_each_table_must_have_the_columns_of_the_first(tmp_path):
    write(tmp_path / "a.csv", range(3))
    write(tmp_path / "b.csv", range(3), column="link")
    with pytest.raises(ConfigError, match=r"b\.csv: has no column 'url', only \['link', 'caption'"):
        open_source(str(tmp_path), PLAIN)


UNCLOSED = [".csv", ".tsv", ".csv.gz", ".csv.zst"]


def packed(path: Path, content: str) -> Path:
    with pa.output_stream(path) as stream:  # compresses by the name
        stream.write(content.replace(",", "\t" if ".tsv" in path.name else ",").encode())
    return path


@pytest.mark.parametrize("suffix", UNCLOSED)
@pytest.mark.parametrize("block_bytes", [100, 4 << 20])
def test_a_quote_that_is_never_closed_is_named(tmp_path, monkeypatch, suffix, block_bytes):
    monkeypatch.setattr("pipeline.table_files._BLOCK_BYTES", block_bytes)
    rows = "".join(f'http://a.org/{row}.jpg,"line\nand line"\n' for row in range(40))
    path = packed(tmp_path / f"t{suffix}", f'url,caption\n{rows}u,"a cat\nv,a dog\nw,a cow\n')
    with pytest.raises(ConfigError) as caught:
        numbers(path)
    place = len("url,caption\n") + len(rows) + len("u,")
    assert str(caught.value) == (
        f"{path}: cannot be read: the quote in line 82, byte {place:,}, is never closed"
    )


@pytest.mark.parametrize("name", ["0.csv", "1.csv"])
@pytest.mark.parametrize("content", ['"url,caption\nu,a\nv,b\n', 'url,caption\n"u,a\nv,b\n'])
def test_a_quote_that_swallows_all_rows_makes_no_empty_table(tmp_path, name, content):
    write(tmp_path / "00.csv", range(3))
    packed(tmp_path / name, content)
    with pytest.raises(ConfigError, match=rf"{name}: cannot be read: the quote in line \d, byte "):
        open_source(str(tmp_path), PLAIN)


def test_a_row_may_be_longer_than_a_block_but_has_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.table_files._BLOCK_BYTES", 500)
    long = "x," * 3000
    rows = 'http://a,"b"\n' * 100
    path = packed(tmp_path / "t.csv", f'url,caption\n{rows}u,"{long}"\n{rows}')
    got = [row for t in open_source(str(path), PLAIN).tables() for row in t.to_pylist()]
    assert [row["captions"] for row in got] == [["b"]] * 100 + [[long]] + [["b"]] * 100
    monkeypatch.setattr("pipeline.table_files._LINE_BYTES", 4000)
    with pytest.raises(ConfigError, match="line 102, byte 1,314, is not closed within 4,000 byt"):
        numbers(path)
    packed(path, f"url,caption\n{rows}u,{'x' * 6000}\n{rows}")
    with pytest.raises(ConfigError, match=r"t\.csv: cannot be read: a row is longer than 4,000 b"):
        numbers(path)


def test_rows_that_a_later_quote_may_have_ended_are_told_of(tmp_path, caplog):
    path = packed(tmp_path / "t.csv", 'url,caption\nu,"a cat\nv,"a dog"\nw,"a\ncow"\n')
    rows = [row for table in open_source(str(path), PLAIN).tables() for row in table.to_pylist()]
    assert [row["captions"] for row in rows] == [['a cat\nv,a dog"'], ["a\ncow"]]
    assert [record.getMessage() for record in caplog.records] == [
        f"quotes may be amiss, and rows lost within values: file={path} values=1 first_line=2"
    ]


EMPTY = {
    "nothing.csv": "",
    "lines.csv": "\n\n",
    "header.csv": "url,caption\n",
    "begun.csv": "url,caption",
    "header.csv.gz": "url,caption\n",
    "nothing.csv.zst": "",
    "header.tsv": "url,caption\r\n",
    "nothing.jsonl": "",
    "lines.jsonl.gz": "\n \n",
}


@pytest.mark.parametrize("name", EMPTY)
@pytest.mark.parametrize("place", ["0-", "9-"])
def test_parts_without_rows_are_passed_over(tmp_path, caplog, name, place):
    write(tmp_path / f"5.{name.partition('.')[2]}", range(3))
    alone = open_source(str(tmp_path), PLAIN).digest()
    for number in range(2):
        packed(tmp_path / f"{place}{number}{name}", EMPTY[name])
    with caplog.at_level(logging.INFO):
        assert numbers(tmp_path) == [0, 1, 2]
    first = f"{tmp_path}/{place}0{name}"
    assert [record.getMessage() for record in caplog.records] == [
        f"passed over, for they hold no row: tables=2 first={first}"
    ]
    assert open_source(str(tmp_path), PLAIN).digest() == alone


@pytest.mark.parametrize("name", EMPTY)
def test_a_source_of_no_rows_is_refused(tmp_path, name):
    packed(tmp_path / f"0{name}", EMPTY[name])
    with pytest.raises(ConfigError, match=rf"0{name}: holds no row$"):
        open_source(str(tmp_path), PLAIN)
    packed(tmp_path / f"1{name}", EMPTY[name])
    with pytest.raises(ConfigError, match=rf"0{name}: holds no row, nor do the other 1$"):
        open_source(str(tmp_path), PLAIN)


def test_an_empty_file_of_bytes_is_an_empty_part_of_any_compression(tmp_path):
    write(tmp_path / "a.csv", range(3))
    for name in ("b.csv", "c.csv.gz", "d.csv.zst", "e.jsonl"):
        (tmp_path / name).touch()
    assert numbers(tmp_path / "*") == [0, 1, 2]


def files_of(*folders: Path) -> None:
    for folder in folders:
        folder.mkdir(exist_ok=True)
        (folder / "t.csv").write_text("file,caption\na.jpg,one\n")


def test_files_lie_in_the_picture_folder_or_beside_their_tables(tmp_path):
    files_of(tmp_path / "a", tmp_path / "b")
    beside = open_source(f"{tmp_path}/a/*.csv", PLAIN)
    assert beside.folder == tmp_path / "a"
    given = open_source(f"{tmp_path}/*/t.csv", PLAIN, f"{tmp_path}/b")
    assert given.folder == tmp_path / "b"
    rows = [row for table in given.tables() for row in table.to_pylist()]
    assert rows == [{"uid": uid_of("a.jpg"), "url": "a.jpg", "captions": ["one"]}] * 2
    with pytest.raises(ConfigError, match=r"a/t\.csv: .*another folder: a picture_folder is need"):
        open_source(f"{tmp_path}/*/t.csv", PLAIN)


def test_a_picture_folder_that_is_not_there_or_not_used_is_named(tmp_path):
    files_of(tmp_path / "a")
    urls = write(tmp_path / "u.csv", range(3))
    with pytest.raises(ConfigError, match=r"picture_folder: .*/none: no such local folder"):
        open_source(f"{tmp_path}/a/t.csv", PLAIN, f"{tmp_path}/none")
    with pytest.raises(ConfigError, match=r"picture_folder: .* not used, .*u\.csv has URLs in its"):
        open_source(str(urls), PLAIN, str(tmp_path / "a"))


def test_tables_on_an_object_store_are_the_tables(bucket, tmp_path):
    fs, options = bucket
    for name, rows in (("2.parquet", range(5, 30)), ("1.csv.gz", range(5))):
        write(tmp_path / name, rows)
    (tmp_path / "note.txt").touch()
    pafs.copy_files(str(tmp_path), "tables/urls", destination_filesystem=fs)
    assert numbers(f"s3://tables/urls/2.parquet?{options}") == list(range(5, 30))
    assert numbers(f"s3://tables/urls/[12].*?{options}") == list(range(30))
    assert numbers(f"s3://tables/*/1*?{options}") == list(range(5))
    here, there = f"{tmp_path}/1*", f"s3://tables/urls/1*?{options}"
    assert open_source(here, PLAIN).digest() == open_source(there, PLAIN).digest()
    with pytest.raises(ConfigError, match=r"urls: holds tables in \.csv and \.parquet"):
        open_source(f"s3://tables/urls?{options}", PLAIN)
    for name, what in (("none.csv", "no such file"), ("none*.csv", "no file matches")):
        with pytest.raises(ConfigError, match=what):
            open_source(f"s3://tables/urls/{name}?{options}", PLAIN)


def test_files_listed_on_an_object_store_need_a_picture_folder(bucket, tmp_path):
    fs, options = bucket
    files_of(tmp_path / "a")
    pafs.copy_files(str(tmp_path / "a"), "tables/files", destination_filesystem=fs)
    with pytest.raises(ConfigError, match="no local folder: a picture_folder is needed"):
        open_source(f"s3://tables/files?{options}", PLAIN)
    source = open_source(f"s3://tables/files?{options}", PLAIN, str(tmp_path))
    assert isinstance(source, TableSource)
    assert source.folder == tmp_path


_PEAK = """
import sys
from pipeline.sources import cut, open_source
from pipeline.url_tables import SourceColumns
rows = sum(s.num_rows for s in cut(open_source(sys.argv[1], SourceColumns()).tables(), 1024))
status = dict(line.split(":") for line in open("/proc/self/status"))
print(rows, status["VmHWM"].split()[0])  # the peak of this process; ru_maxrss has its parent's too
"""


def peak_mb(location: str, rows: int) -> float:
    """Peak memory of a process that reads a source, in megabytes."""
    command = [sys.executable, "-c", _PEAK, location]
    read, peak_kb = subprocess.run(command, check=True, capture_output=True).stdout.split()
    assert int(read) == rows
    return int(peak_kb) / 1024


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".parquet", ".csv.gz", ".jsonl.zst"])
def test_memory_does_not_grow_with_the_number_of_tables(tmp_path, suffix):
    path = write(tmp_path / f"t0{suffix}", range(100_000))
    for number in range(1, 10):
        (tmp_path / f"t{number}{suffix}").hardlink_to(path)
    small = peak_mb(str(path), 100_000)
    # Arrow's threads hold some more at times; what grew with the tables would do so each time.
    assert min(peak_mb(f"{tmp_path}/*", 1_000_000) for _ in range(3)) < small + 40


@pytest.mark.parametrize("nested", [{"en": "a"}, [{"en": "a"}], [["a"]]])
@pytest.mark.parametrize("second", [False, True])
def test_a_caption_column_of_objects_is_refused(tmp_path, nested, second):
    if second:
        write(tmp_path / "0.parquet", range(3))
    table = pa.table({"url": ["http://a.org/1"], "caption": [nested]})
    pa.parquet.write_table(table, tmp_path / "1.parquet")
    with pytest.raises(ConfigError, match=r"1.parquet: 'caption' is .*which is no caption"):
        open_source(str(tmp_path / "*.parquet"), PLAIN)


@pytest.mark.parametrize("cells", [[5], [True], [0.5], [[5]]])
def test_a_caption_column_that_is_declared_no_text_is_refused(tmp_path, cells):
    pa.parquet.write_table(pa.table({"url": ["u"], "caption": cells}), tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match=r"t\.parquet: 'caption' is .*, which is no caption"):
        open_source(str(tmp_path / "t.parquet"), PLAIN)


def test_a_caption_column_of_nulls_is_read(tmp_path):
    pa.parquet.write_table(pa.table({"url": ["u"], "caption": [None]}), tmp_path / "t.parquet")
    (table,) = open_source(str(tmp_path / "t.parquet"), PLAIN).tables()
    assert table.column("captions").to_pylist() == [[]]


def test_lists_of_captions_of_every_declared_kind_are_read(tmp_path):
    for kind in (pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.string(), 2)):
        columns = {"url": ["http://a.org/1"], "caption": pa.array([["a", "b"]], kind)}
        pa.parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
        rows = next(iter(open_source(str(tmp_path / "t.parquet"), PLAIN).tables()))
        assert rows.column("captions").to_pylist() == [["a", "b"]]
