"""Tars as others write them are read member by member, and a broken one is one clear line."""

import io
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from pipeline.errors import ConfigError
from pipeline.fetch import FetchConfig, FetchFault
from pipeline.schemas import SOURCE, with_extra
from pipeline.sources import open_source
from pipeline.uids import uid_of
from pipeline.url_tables import SourceColumns

PLAIN = SourceColumns()


def write(path: Path, members: list[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def pair(key: str, caption: str, **fields: object) -> list[tuple[str, bytes]]:
    """As img2dataset writes a pair."""
    said = json.dumps({"caption": caption, **fields}).encode()
    return [(f"{key}.jpg", key.encode()), (f"{key}.json", said), (f"{key}.txt", caption.encode())]


def rows_of(location: object, columns: SourceColumns = PLAIN) -> list[dict]:
    source = open_source(str(location), columns)
    tables = list(source.tables())
    assert all(table.schema.equals(with_extra(SOURCE, source.extra)) for table in tables)
    return [row for table in tables for row in table.to_pylist()]


def captions_of(location: object, columns: SourceColumns = PLAIN) -> dict[str, list[str]]:
    return {row["url"].partition(".tar/")[2]: row["captions"] for row in rows_of(location, columns)}


def outcome(fetch, location: str) -> str:
    with pytest.raises(FetchFault) as fault:
        fetch(location)
    return str(fault.value)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_pairs_come_through_whole_in_the_order_of_the_tars(tmp_path, form):
    long = "a" * 90 + "/" + "b" * 90 if form != tarfile.USTAR_FORMAT else "short"
    write(tmp_path / "00001.tar", pair("000000010", "third"), form)
    write(tmp_path / "00000.tar", pair("000000000", "one") + pair(long, "two\nlines"), form)
    source = open_source(str(tmp_path), PLAIN)
    rows = rows_of(tmp_path)
    assert [(row["url"], row["captions"]) for row in rows] == [
        ("00000.tar/000000000.jpg", ["one"]),
        (f"00000.tar/{long}.jpg", ["two\nlines"]),
        ("00001.tar/000000010.jpg", ["third"]),
    ]
    assert rows[0]["uid"] == uid_of("00000.tar/000000000.jpg")
    fetch = source.open_fetcher(FetchConfig())
    assert [fetch(row["url"]) for row in rows] == [b"000000000", long.encode(), b"000000010"]
    small = source.open_fetcher(FetchConfig(max_download_bytes=8))
    assert outcome(small, rows[0]["url"]) == "failed:too_large"


def test_tars_on_an_object_store_are_those_of_a_disk(tmp_path, bucket):
    fs, options = bucket
    for number in range(6):  # more than a worker keeps open
        members = [m for k in range(4) for m in pair(f"{number}{k}", f"caption {k}", license="cc")]
        write(tmp_path / f"{number}.tar", members)
    pafs.copy_files(str(tmp_path), "tables/tars", destination_filesystem=fs)
    columns = SourceColumns(keep=("license",))
    here = open_source(str(tmp_path), columns)
    rows = rows_of(tmp_path, columns)
    assert len(rows) == 24
    for location in (f"s3://tables/tars?{options}", f"s3://tables/tars/[0-5].tar?{options}"):
        there = open_source(location, columns)
        assert there.digest() == here.digest()
        assert rows_of(location, columns) == rows
        fetch = there.open_fetcher(FetchConfig())
        with ThreadPoolExecutor(8) as pool:
            got = list(pool.map(fetch, [row["url"] for row in rows]))
        assert got == [row["url"][6:8].encode() for row in rows]
    (tmp_path / "cut.tar").write_bytes((tmp_path / "0.tar").read_bytes()[:1500])
    pafs.copy_files(f"{tmp_path}/cut.tar", "tables/cut.tar", destination_filesystem=fs)
    with pytest.raises(ConfigError, match=r"cut\.tar: cannot be read"):
        rows_of(f"s3://tables/cut.tar?{options}")


def test_tars_of_several_folders_are_named_by_them(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "0.tar", [("x.png", folder.encode())])
    source = open_source(f"{tmp_path}/*/*.tar", PLAIN)
    urls = [row["url"] for row in rows_of(f"{tmp_path}/*/*.tar")]
    assert urls == ["a/0.tar/x.png", "b/0.tar/x.png"]
    fetch = source.open_fetcher(FetchConfig())
    assert [fetch(url) for url in urls] == [b"a", b"b"]


def test_which_members_are_a_picture_and_its_caption(tmp_path):
    members = [
        *(("alone.PNG", b""), ("sub/a.b.jpg", b""), ("sub/a.txt", b"\xef\xbb\xbfcaf\xe9\r\n")),
        *(("object.bmp", b""), ("object.json", b'{"caption": {"en": "x"}, "size": 2}')),
        *(("list.webp", b""), ("list.json", b'{"captions": ["x", null, 2]}')),
        *(("sub/a.jpg", b""), ("sub/a.seg.png", b""), ("lost.txt", b"no picture")),
        *(("alt.gif", b""), ("alt.json", b'{"alt": "z"}'), ("alt.txt", b"text")),
        *((".hidden.jpg", b""), ("sub/._a.jpg", b""), ("note.md", b"")),
    ]
    tar = write(tmp_path / "t.tar", members)
    assert captions_of(tar) == {
        "alone.PNG": [],
        "object.bmp": [""],
        "list.webp": ["x", "", ""],
        "sub/a.jpg": ["caf\ufffd"],
        "alt.gif": ["text"],
    }
    assert captions_of(tar, SourceColumns(caption_column="alt"))["alt.gif"] == ["z"]


def test_fields_of_the_json_are_kept(tmp_path):
    members = [*pair("a", "x", license="cc", size=[1, 2]), ("b.jpg", b"")]
    tar = write(tmp_path / "t.tar", members)
    kept = [row["extra"] for row in rows_of(tar, SourceColumns(keep=("license,size",)))]
    assert kept == [{"license": "cc", "size": "[1, 2]"}, {"license": None, "size": None}]
    with pytest.raises(ConfigError, match="no JSON in the tars has the field 'licence'"):
        rows_of(tar, SourceColumns(keep=("licence",)))


def test_no_name_of_a_member_is_a_path(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (tmp_path / "tars").mkdir()
    tar = tmp_path / "tars" / "t.tar"
    names = ["../secret.jpg", str(tmp_path / "secret.jpg"), "a/../../b.jpg", "\udcff.jpg"]
    write(tar, [(name, b"member") for name in names], tarfile.GNU_FORMAT)
    with tarfile.open(tar, "a") as opened:
        for name, kind in (("link.jpg", tarfile.SYMTYPE), ("hard.jpg", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "../secret.jpg"
            opened.addfile(info)
        for name, kind in (("folder.jpg", tarfile.DIRTYPE), ("pipe.jpg", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type = kind
            opened.addfile(info)
    source = open_source(str(tar), PLAIN)
    rows = rows_of(tar)
    assert [row["url"] for row in rows] == [
        *(f"t.tar/{name}" for name in names[:3]),
        "t.tar/\ufffd.jpg",
    ]
    fetch = source.open_fetcher(FetchConfig())
    assert {fetch(row["url"]) for row in rows} == {b"member"}
    for location in ("../secret.jpg", "t.tar", "", str(tar), "u.tar/a.jpg"):
        assert outcome(fetch, location) == "failed:bad_path"
    for location in ("t.tar/link.jpg", "t.tar/", "t.tar/secret.jpg", "t.tar/folder.jpg"):
        assert outcome(fetch, location) == "failed:missing_file"


def test_of_a_member_that_is_there_twice_the_last_counts(tmp_path):
    tar = write(tmp_path / "t.tar", [("a.jpg", b"old"), ("a.jpg", b"newer")])
    assert captions_of(tar) == {"a.jpg": []}
    assert open_source(str(tar), PLAIN).open_fetcher(FetchConfig())("t.tar/a.jpg") == b"newer"


def whole_tar(path: Path) -> bytes:
    members = [(f"{number}.jpg", bytes([number]) * 700) for number in range(4)]
    return write(path, members, tarfile.GNU_FORMAT).read_bytes()


def patched(tar: bytes, header: int, field: slice, value: bytes) -> bytes:
    """A tar with one field of one header (a block's number) changed, its checksum mended."""
    block = bytearray(tar[header * 512 : header * 512 + 512])
    block[field] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return tar[: header * 512] + bytes(block) + tar[header * 512 + 512 :]


SIZE, KIND = slice(124, 136), slice(156, 157)
BROKEN = {
    "empty": lambda tar: b"",
    "text": lambda tar: b"no tar at all " * 100,
    "in data": lambda tar: tar[: 512 * 8],
    "in the last data": lambda tar: tar[: 512 * 11 + 100],
    "in a header": lambda tar: tar[: 512 * 6 + 100],
    "between members": lambda tar: tar[: 512 * 6],
    "a header overwritten": lambda tar: tar[: 512 * 6] + b"\xff" * 512 + tar[512 * 7 :],
    "a size below zero": lambda tar: patched(tar, 3, SIZE, b"\xff" * 11 + b"\x00"),
    "a size beyond the end": lambda tar: patched(tar, 3, SIZE, b"77777777777\0"),
    "a name of gigabytes": lambda tar: patched(
        patched(tar, 3, SIZE, b"77777777777\0"), 3, KIND, b"L"
    ),
    "a pax header of gigabytes": lambda tar: patched(
        patched(tar, 3, SIZE, b"77777777777\0"), 3, KIND, b"x"
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_tar_is_named_in_one_line(tmp_path, fault):
    tar = tmp_path / "t.tar"
    tar.write_bytes(BROKEN[fault](whole_tar(tar)))
    with pytest.raises(ConfigError) as caught:
        rows_of(tar)
    assert str(caught.value).startswith(f"{tar}: cannot be read: ")
    assert "\n" not in str(caught.value)
    fetch = open_source(str(tar), PLAIN).open_fetcher(FetchConfig())
    assert outcome(fetch, "t.tar/0.jpg") == "failed:unreadable_file"


@pytest.mark.parametrize("said", [b"{", b"[]", b"[" * 100_000])
def test_a_broken_json_is_named_with_its_place(tmp_path, said):
    tar = write(tmp_path / "t.tar", [("a.jpg", b""), ("a.json", said)])
    with pytest.raises(ConfigError, match=r"t\.tar: cannot be read: "):
        rows_of(tar)


def test_a_caption_without_end_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.tars._TEXT_BYTES", 1 << 16)
    tar = write(tmp_path / "t.tar", [("a.jpg", b""), ("a.txt", b"x" * (1 << 17))])
    with pytest.raises(ConfigError, match=r"t\.tar: cannot be read: a caption of 131,072 bytes"):
        rows_of(tar)


def test_compressed_tars_and_mixtures_are_refused(tmp_path):
    tar = write(tmp_path / "t.tar", pair("a", "x"))
    (tmp_path / "u.tar.gz").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"u\.tar\.gz: is '\.gz'; one of .*, \.tar, \.json"):
        open_source(str(tmp_path / "u.tar.gz"), PLAIN)
    (tmp_path / "t.csv").write_text("url,caption\nu,c\n")
    with pytest.raises(ConfigError, match=r"holds tables in \.csv and \.tar; name the ones"):
        open_source(str(tmp_path), PLAIN)
    with pytest.raises(ConfigError, match=r"t\.tar: is a tar, and others here are none"):
        open_source(f"{tmp_path}/t.[ct]*", PLAIN)
    with pytest.raises(ConfigError, match=r"picture_folder: .* is not used, .*t\.tar has"):
        open_source(str(tar), PLAIN, str(tmp_path))


def test_the_digest_covers_names_and_captions_and_not_the_place(tmp_path):
    digests = set()
    for number, members in enumerate((pair("a", "x"), pair("b", "x"), pair("a", "y"))):
        (tmp_path / str(number)).mkdir()
        tar = write(tmp_path / str(number) / "t.tar", members)
        digests.add(open_source(str(tar), PLAIN).digest())
    assert len(digests) == 3
    (tmp_path / "again").mkdir()
    again = write(tmp_path / "again" / "t.tar", pair("a", "x"), tarfile.PAX_FORMAT)
    assert open_source(str(again), PLAIN).digest() in digests


def test_many_threads_in_many_tars_get_each_its_picture(tmp_path):
    for tar in range(7):
        members = [(f"{number}.jpg", f"{tar} {number}".encode()) for number in range(40)]
        write(tmp_path / f"{tar}.tar", members)
    fetch = open_source(str(tmp_path), PLAIN).open_fetcher(FetchConfig())
    asked = [(tar, number) for number in range(40) for tar in range(7)]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda at: fetch(f"{at[0]}.tar/{at[1]}.jpg"), asked))
    assert got == [f"{tar} {number}".encode() for tar, number in asked]


def test_a_tar_of_many_pictures_comes_in_several_tables(tmp_path):
    write(tmp_path / "t.tar", [(f"{number:04}.jpg", b"") for number in range(1030)])
    tables = list(open_source(str(tmp_path), PLAIN).tables())
    assert [table.num_rows for table in tables] == [1024, 6]
