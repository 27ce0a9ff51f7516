"""A source says the same whatever file it is in, in a fixed order, or names what is wrong."""

import csv
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.schemas import SLICE, SOURCE
from pipeline.sources import SourceColumns, cut, num_captions, open_source
from pipeline.uids import uid_of, uid_of_url

TABLES = [".parquet", ".jsonl", ".csv", ".tsv"]
LISTS = [".parquet", ".jsonl"]  # formats whose cells can be lists and nulls
PLAIN = SourceColumns()
TEXTS = [
    "a plain one",
    "",
    ' "quoted", with a comma\tand a tab ',
    "two\nlines\r\nand a third",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2028 \x07",
    "NA",
    "null",
    "007",
    "\\n \\",
]


def write(path: Path, columns: dict[str, list]) -> Path:
    """Write a table in the format that the suffix says."""
    if path.suffix == ".parquet":
        pa.parquet.write_table(pa.table(columns), path)
        return path
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, columns, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def rows_of(path: Path, columns: SourceColumns = PLAIN) -> list[dict]:
    rows = []
    for table in open_source(str(path), columns).tables():
        assert table.schema.equals(SOURCE)
        rows += table.to_pylist()
    return rows


def urls(count: int) -> list[str]:
    return [f"http://a.org/{number}.jpg" for number in range(count)]


@pytest.mark.parametrize("suffix", TABLES)
def test_one_content_is_one_source_in_every_format(tmp_path, suffix):
    columns = {"id": list(range(len(TEXTS))), "url": urls(len(TEXTS)), "caption": TEXTS}
    assert rows_of(write(tmp_path / f"t{suffix}", columns)) == [
        {"uid": uid_of_url(url), "url": url, "captions": [text]}
        for url, text in zip(urls(len(TEXTS)), TEXTS, strict=True)
    ]


@pytest.mark.parametrize("suffix", TABLES)
def test_a_table_of_many_blocks_comes_through_whole(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr("pipeline.table_files._BLOCK_BYTES", 500)
    captions = [f"{number}\n{'line' * (number % 7)}\n" for number in range(200)]
    path = write(tmp_path / f"t{suffix}", {"url": urls(200), "caption": captions})
    assert [row["captions"] for row in rows_of(path)] == [[caption] for caption in captions]


@pytest.mark.parametrize("suffix", LISTS)
def test_captions_can_be_lists_and_a_null_is_none(tmp_path, suffix):
    captions = [["one", "two"], [], None, ["three", ""]]
    path = write(tmp_path / f"t{suffix}", {"url": urls(4), "captions": captions})
    assert [row["captions"] for row in rows_of(path)] == [["one", "two"], [], [], ["three", ""]]


@pytest.mark.parametrize("suffix", LISTS)
@pytest.mark.parametrize("captions", [[None, ["one", "two"]], [None, "one"], [None, None]])
def test_the_first_caption_may_be_null(tmp_path, suffix, captions):
    path = write(tmp_path / f"t{suffix}", {"url": urls(2), "caption": captions})
    last = captions[1]
    expected = last if isinstance(last, list) else [] if last is None else [last]
    assert [row["captions"] for row in rows_of(path)] == [[], expected]


@pytest.mark.parametrize("suffix", LISTS)
def test_a_null_url_is_an_empty_one(tmp_path, suffix):
    path = write(tmp_path / f"t{suffix}", {"url": ["http://a", None], "caption": ["x", "y"]})
    assert [row["url"] for row in rows_of(path)] == ["http://a", ""]


def test_a_line_of_json_may_lack_the_caption_wherever_it_stands(tmp_path):
    lines = ['{"url": "http://a/1"}', '{"url": "http://a/2", "caption": "x"}']
    path = tmp_path / "t.jsonl"
    for order in (lines[::-1], lines):
        path.write_text("\n".join(order))
        captions = {row["url"]: row["captions"] for row in rows_of(path)}
        assert captions == {"http://a/1": [], "http://a/2": ["x"]}


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv"])
def test_a_table_without_rows_is_refused(tmp_path, suffix):
    path = write(tmp_path / f"t{suffix}", {"url": [], "caption": []})
    with pytest.raises(ConfigError, match=rf"t\{suffix}: holds no row$"):
        rows_of(path)


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_bytes_that_are_no_utf8_are_replaced_in_their_cell_alone(tmp_path, suffix):
    line = b"http://a/1,caf\xe9\nhttp://a/2,b\n\xff,c\n"
    path = tmp_path / f"t{suffix}"
    path.write_bytes((b"url,caption\n" + line).replace(b",", b"\t" if suffix == ".tsv" else b","))
    assert [(row["url"], row["captions"]) for row in rows_of(path)] == [
        ("http://a/1", ["caf\ufffd"]),
        ("http://a/2", ["b"]),
        ("\ufffd", ["c"]),
    ]


def captions_or_culprit(path: Path) -> list[list[str]] | str:
    """The captions, or the file that a ConfigError names: replacing is as good as refusing."""
    try:
        return [row["captions"] for row in rows_of(path)]
    except ConfigError as error:
        return str(error).partition(":")[0]


@pytest.mark.parametrize("first", [True, False])
def test_bytes_that_are_no_utf8_do_not_crash_a_jsonl(tmp_path, first):
    good, bad = b'{"url": "u", "caption": "a"}\n', b'{"url": "v", "caption": "\xe9"}\n'
    path = tmp_path / "t.jsonl"
    path.write_bytes(bad + good if first else good + bad)
    captions = [["\ufffd"], ["a"]] if first else [["a"], ["\ufffd"]]
    assert captions_or_culprit(path) in (captions, str(path))


def test_bytes_that_are_no_utf8_do_not_crash_a_parquet(tmp_path):
    whole = pa.array([b"\xe9", b"a"])
    texts = pa.Array.from_buffers(pa.string(), 2, whole.buffers())
    path = tmp_path / "t.parquet"
    pa.parquet.write_table(pa.table({"url": ["u", "v"], "caption": texts}), path)
    assert captions_or_culprit(path) in ([["\ufffd"], ["a"]], str(path))


@pytest.mark.parametrize(
    "kind",
    [pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string()), pa.string_view()],
    ids=str,
)
def test_text_may_be_of_any_arrow_type(tmp_path, kind):
    path = tmp_path / "t.parquet"
    texts = pa.array(["one", None]).cast(kind)
    pa.parquet.write_table(pa.table({"url": texts, "caption": texts}), path)
    assert [(row["url"], row["captions"]) for row in rows_of(path)] == [("one", ["one"]), ("", [])]


@pytest.mark.parametrize("suffix", TABLES)
def test_a_missing_column_is_named_with_the_file(tmp_path, suffix):
    path = write(tmp_path / f"t{suffix}", {"link": ["http://a"], "caption": ["x"]})
    with pytest.raises(ConfigError, match=rf"t\{suffix}: has no column 'url' or 'file'.*'link'"):
        open_source(str(path), PLAIN)
    with pytest.raises(ConfigError, match=rf"t\{suffix}: has no column 'alt'"):
        open_source(str(path), SourceColumns(url_column="link", caption_column="alt"))
    named = SourceColumns(url_column="link")
    assert [row["url"] for row in rows_of(path, named)] == ["http://a"]


def test_the_caption_column_is_the_named_one(tmp_path):
    path = write(
        tmp_path / "t.csv", {"url": ["u"], "captions": ["b"], "caption": ["a"], "alt": ["c"]}
    )
    assert rows_of(path)[0]["captions"] == ["a"]
    assert rows_of(path, SourceColumns(caption_column="alt"))[0]["captions"] == ["c"]


@pytest.mark.parametrize("name", ["absent.csv", "absent", "no/such/folder/"])
def test_a_file_that_is_not_there_is_named(tmp_path, name):
    with pytest.raises(ConfigError, match=rf"{name}: no such file"):
        open_source(f"{tmp_path}/{name}", PLAIN)


def test_a_home_that_is_not_there_is_an_error_of_the_user():
    with pytest.raises(ConfigError, match="nobody_of_that_name"):
        open_source("~nobody_of_that_name/t.csv", PLAIN)


def test_a_file_of_another_kind_is_named(tmp_path):
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    with pytest.raises(
        ConfigError, match=r"t\.xlsx: is '\.xlsx'; one of \.parquet, \.arrow, \.csv"
    ):
        open_source(str(tmp_path / "t.xlsx"), PLAIN)


def good_parquet() -> bytes:
    stream = pa.BufferOutputStream()
    pa.parquet.write_table(pa.table({"url": urls(9), "caption": TEXTS[:9]}), stream)
    return stream.getvalue().to_pybytes()


def overwritten(data: bytes, start: int) -> bytes:
    return data[:start] + b"\xff" * 40 + data[start + 40 :]


GOOD_LINE = '{"url": "u", "caption": "a"}\n'
GOOD_PARQUET = good_parquet()
FOOTER = len(GOOD_PARQUET) - 8 - int.from_bytes(GOOD_PARQUET[-8:-4], "little")
MALFORMED = {
    "empty.jsonl": b"",
    "text.jsonl": b"not json\n",
    "cut.jsonl": (GOOD_LINE + '{"url": "v", "capt').encode(),
    "number.jsonl": (GOOD_LINE + "5\n").encode(),
    "list.jsonl": ('["url", "caption"]\n' + GOOD_LINE).encode(),
    "deep.jsonl": (GOOD_LINE + "[" * 100_000 + "\n").encode(),
    "empty.csv": b"",
    "ragged.csv": b"url,caption\nu,a,b\n",
    "late.csv": b"url,caption\n" + b"u,a\n" * 500_000 + b"v\n",
    "empty.parquet": b"",
    "text.parquet": b"no parquet at all" * 10,
    "cut.parquet": GOOD_PARQUET[: len(GOOD_PARQUET) // 2],
    "footer.parquet": overwritten(GOOD_PARQUET, FOOTER),
    "pages.parquet": overwritten(GOOD_PARQUET, 4),
    "empty.arrow": b"",
    "text.arrow": b"no table at all " * 10,
}


def test_odd_cells_of_a_jsonl_lose_no_row(tmp_path):
    path = tmp_path / "t.jsonl"
    lines = ['{"url": 5, "caption": {"a": 1}}', '{"url": "v", "caption": ["\\ud800", null, 2.5]}']
    path.write_text("\n".join(lines))
    assert [(row["url"], row["captions"]) for row in rows_of(path)] == [
        ("5", [""]),
        ("v", ["?", "", ""]),
    ]


def test_a_line_of_a_jsonl_without_end_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.table_files._LINE_BYTES", 100)
    path = tmp_path / "t.jsonl"
    path.write_text(GOOD_LINE + "x" * 101)
    with pytest.raises(ConfigError, match=r"t\.jsonl: cannot be read: line 2 is longer than 100"):
        rows_of(path)


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_table_is_named_in_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(MALFORMED[name])
    with pytest.raises(ConfigError) as caught:
        rows_of(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert "\n" not in str(caught.value)


def test_a_folder_may_list_its_pairs(tmp_path):
    (tmp_path / "unlisted.jpg").touch()
    columns = {"file": ["sub/a.jpg", "b#1.png"], "caption": ["x", "y"]}
    write(tmp_path / "pairs.jsonl", columns)
    source = open_source(str(tmp_path), PLAIN)
    assert source.folder == tmp_path
    assert rows_of(tmp_path) == [
        {"uid": uid_of("sub/a.jpg"), "url": "sub/a.jpg", "captions": ["x"]},
        {"uid": uid_of("b#1.png"), "url": "b#1.png", "captions": ["y"]},
    ]


def test_a_table_of_urls_has_no_folder_and_urls_go_before_files(tmp_path):
    both = write(tmp_path / "t.csv", {"file": ["a.jpg"], "url": ["http://a/b"], "caption": ["x"]})
    assert open_source(str(both), PLAIN).folder is None
    assert rows_of(both)[0]["uid"] == uid_of_url("http://a/b")


def fill(folder: Path) -> Path:
    (folder / "b").mkdir(parents=True)
    for name in ("b/2.PNG", "a.jpg", "b/1.v2.webp", "z.jpeg", "note.md"):
        (folder / name).write_bytes(b"any")
    (folder / "a.txt").write_text("first\nsecond\n", encoding="utf-8")
    (folder / "b" / "1.v2.txt").write_bytes(b"caf\xe9")
    (folder / "b" / "2.txt").write_text("")
    return folder


def test_a_folder_of_pictures_has_its_captions_beside_them(tmp_path):
    assert [(row["url"], row["captions"]) for row in rows_of(fill(tmp_path / "f"))] == [
        ("a.jpg", ["first", "second"]),
        ("b/1.v2.webp", ["caf\ufffd"]),
        ("b/2.PNG", []),
        ("z.jpeg", []),
    ]
    assert rows_of(tmp_path / "f")[1]["uid"] == uid_of("b/1.v2.webp")


def test_a_picture_whose_name_is_no_utf8_is_still_a_row(tmp_path):
    (tmp_path / "f").mkdir()
    Path(str(tmp_path / "f" / "a\udcff.jpg")).touch()
    assert [row["url"] for row in rows_of(tmp_path / "f")] == ["a\ufffd.jpg"]


def test_a_folder_in_place_of_captions_is_no_crash(tmp_path):
    (tmp_path / "f" / "a.txt").mkdir(parents=True)
    (tmp_path / "f" / "a.jpg").touch()
    assert [row["captions"] for row in rows_of(tmp_path / "f")] == [[]]


def test_a_large_folder_comes_in_several_tables(tmp_path):
    for number in range(1030):
        (tmp_path / f"{number:04}.jpg").touch()
    tables = list(open_source(str(tmp_path), PLAIN).tables())
    assert len(tables) > 1
    names = [name for table in tables for name in table.column("url").to_pylist()]
    assert names == [f"{number:04}.jpg" for number in range(1030)]


def test_a_folder_without_pictures_is_refused(tmp_path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(ConfigError, match=r"neither tables nor pictures"):
        open_source(str(tmp_path), PLAIN)


@pytest.mark.parametrize("suffix", TABLES)
def test_the_digest_of_a_table_covers_content_and_columns_and_not_the_place(tmp_path, suffix):
    columns = {"url": ["http://a"], "file": ["a"], "caption": ["x"], "alt": ["y"]}
    path = write(tmp_path / f"t{suffix}", columns)
    digest = open_source(str(path), PLAIN).digest()
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.copy(path, tmp_path / "elsewhere" / f"other{suffix}")
    assert open_source(str(moved), PLAIN).digest() == digest

    others = [
        open_source(str(path), SourceColumns(caption_column="alt")).digest(),
        open_source(str(path), SourceColumns(url_column="file")).digest(),
        open_source(str(path), SourceColumns(url_column="")).digest(),  # `file` as a file
        open_source(str(write(path, {**columns, "caption": ["z"]})), PLAIN).digest(),
    ]
    assert len({digest, *others}) == 5


def test_the_digest_of_a_folder_covers_names_and_captions_and_not_the_place(tmp_path):
    folder = fill(tmp_path / "one")
    digest = open_source(str(folder), PLAIN).digest()
    other = shutil.copytree(folder, tmp_path / "two" / "elsewhere")
    assert open_source(str(other), PLAIN).digest() == digest

    digests = {digest}
    (other / "z.txt").write_text("new")
    digests.add(open_source(str(other), PLAIN).digest())
    (other / "z.txt").unlink()
    (other / "z.jpeg").rename(other / "y.jpeg")
    digests.add(open_source(str(other), PLAIN).digest())
    (other / "y.jpeg").unlink()
    digests.add(open_source(str(other), PLAIN).digest())
    assert len(digests) == 4


def source_table(first: int, count: int) -> pa.Table:
    rows = range(first, first + count)
    return pa.table(
        {
            "uid": [row.to_bytes(16, "big") for row in rows],
            "url": [str(row) for row in rows],
            "captions": [[f"{row}.{n}" for n in range(row % 3)] for row in rows],
        },
        schema=SOURCE,
    )


@settings(max_examples=80, deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(0, 9), max_size=6), rows=st.integers(1, 7))
def test_slices_are_of_exactly_the_size_asked_for_and_lose_nothing(sizes, rows):
    tables = [source_table(sum(sizes[:n]), size) for n, size in enumerate(sizes)]
    slices = list(cut(iter(tables), rows))
    assert [s.num_rows for s in slices] == [
        min(rows, sum(sizes) - start) for start in range(0, sum(sizes), rows)
    ]
    whole = source_table(0, sum(sizes))
    numbered = whole.append_column("source_row", pa.array(range(sum(sizes)), pa.int64()))
    assert pa.concat_tables([SLICE.empty_table(), *slices]).equals(numbered)
    assert num_captions(whole) == sum(row % 3 for row in range(sum(sizes)))


CAPTIONS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    cells=st.lists(CAPTIONS, min_size=1, max_size=8)
    | st.lists(st.lists(CAPTIONS, max_size=3), min_size=1, max_size=8),
    rows=st.integers(1, 4),
)
@pytest.mark.parametrize("suffix", TABLES)
def test_captions_in_any_script_pass_through_unchanged(tmp_path_factory, suffix, cells, rows):
    if isinstance(cells[0], list):
        if suffix not in LISTS:
            return
        expected = cells
    else:
        expected = [[cell] for cell in cells]
    path = write(
        tmp_path_factory.getbasetemp() / f"any{suffix}",
        {"url": urls(len(cells)), "caption": cells},
    )
    slices = list(cut(open_source(str(path), PLAIN).tables(), rows))
    assert [row for s in slices for row in s.column("captions").to_pylist()] == expected
    assert [row for s in slices for row in s.column("url").to_pylist()] == urls(len(cells))


def test_a_folder_is_read_as_pairs_jsonl_or_as_all_its_tables_of_one_format(tmp_path):
    def listed() -> list[str]:
        return [row["url"] for row in rows_of(tmp_path)]

    for name in ("b.jsonl", "a.jsonl", ".hidden.jsonl"):
        write(tmp_path / name, {"file": [f"{name}.png"], "caption": ["one"]})
    assert listed() == ["a.jsonl.png", "b.jsonl.png"]
    write(tmp_path / "c.csv", {"file": ["c.png"], "caption": ["one"]})
    with pytest.raises(ConfigError, match=r"holds tables in \.csv and \.jsonl; name the ones"):
        open_source(str(tmp_path), PLAIN)
    write(tmp_path / "pairs.jsonl", {"file": ["p.png"], "caption": ["one"]})
    assert listed() == ["p.png"]


def test_captions_beside_a_picture_are_its_lines(tmp_path):
    (tmp_path / "a.jpg").touch()
    (tmp_path / "a.txt").write_bytes("\ufeffone\u2028still one\r\ntwo\n".encode())
    assert rows_of(tmp_path)[0]["captions"] == ["one\u2028still one", "two"]


def test_a_url_column_asked_for_by_name_must_be_there(tmp_path):
    (tmp_path / "t.csv").write_text("file,caption\na.jpg,one\n")
    with pytest.raises(ConfigError, match="has no column 'link', only"):
        open_source(str(tmp_path / "t.csv"), SourceColumns(url_column="link"))


def test_blank_lines_of_a_jsonl_are_passed_over(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('\n{"url": "http://x/a", "captions": ["one"]}\n\n')
    assert [row["captions"] for row in rows_of(path)] == [["one"]]


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_column_twice_is_named(tmp_path, suffix):
    path = tmp_path / f"t.{suffix}"
    if suffix == "csv":
        path.write_text("url,caption,url\nhttp://x/a,one,http://x/b\n")
    else:
        table = pa.table([["http://x/a"], ["one"], ["http://x/b"]], names=["url", "caption", "url"])
        pa.parquet.write_table(table, path)
    with pytest.raises(ConfigError, match=r"has the column 'url' 2 times"):
        open_source(str(path), SourceColumns())
