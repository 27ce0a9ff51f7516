"""Pictures that lie in tables, as others write them, come out byte for byte."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import polars
import pyarrow as pa
import pyarrow.feather
import pyarrow.fs as pafs
import pyarrow.parquet
import pytest
from PIL import Image

from pipeline import picture_tables
from pipeline.accounting import Account
from pipeline.download import download
from pipeline.errors import ConfigError
from pipeline.fetch import FetchConfig, Fetcher, FetchFault
from pipeline.picture_tables import TableFetcher
from pipeline.pictures import PictureConfig
from pipeline.sources import Source, cut, open_source
from pipeline.uids import uid_of
from pipeline.url_tables import SourceColumns

COUNT = 30


@pytest.fixture(scope="module")
def pictures(encode, noise) -> list[bytes]:
    return [encode(noise(number), "PNG") for number in range(COUNT)]


def fetcher_of(source: Source, expected: list[str], **options) -> Fetcher:
    fetch = source.open_fetcher(FetchConfig(**options))
    fetch.expect(expected)
    return fetch


def write(path: Path, pictures: list[bytes], form: str) -> None:
    """The pictures with captions, and one row without a picture, as somebody else writes them."""
    rows = {
        "image": [*pictures, None],
        "caption": [f"caption {number}" for number in range(len(pictures) + 1)],
        "license": [f"cc-{number}" for number in range(len(pictures) + 1)],
    }
    # The library datasets would store the file at a path that is there; we never read it.
    told = "nowhere/picture.png" if form.startswith("datasets") else "/etc/passwd"
    structs = [data and {"bytes": data, "path": told} for data in rows["image"]]
    if form.startswith("datasets"):
        features = datasets.Features(
            {"image": datasets.Image(), "caption": datasets.Value("string")}
            | {"license": datasets.Value("string")}
        )
        made = datasets.Dataset.from_dict(rows | {"image": structs}, features=features)
        if form == "datasets.parquet":
            made.to_parquet(path / "a.parquet", batch_size=7)
        else:
            made.save_to_disk(path)
    elif form == "polars.parquet":
        polars.DataFrame(rows).write_parquet(path / "a.parquet", row_group_size=11)
    elif form == "one-group.parquet":
        pa.parquet.write_table(pa.table(rows), path / "a.parquet", data_page_size=1 << 10)
    elif form == "feather.arrow":
        pa.feather.write_feather(pa.table(rows), str(path / "a.arrow"), chunksize=4)
    else:
        table = pa.table(rows | {"image": pa.array(structs)})
        with pa.ipc.new_stream(path / "a.arrow", table.schema) as writer:
            writer.write_table(table, max_chunksize=9)


FORMS = [
    *("datasets.parquet", "datasets.save", "polars.parquet"),
    *("one-group.parquet", "feather.arrow", "stream.arrow"),
]


@pytest.mark.parametrize("form", FORMS)
def test_what_others_write_comes_through_whole(tmp_path, monkeypatch, pictures, form):
    monkeypatch.setattr("pipeline.table_files._BLOCK_BYTES", 4000)
    write(tmp_path, pictures, form)
    source = open_source(str(tmp_path), SourceColumns(keep=("license",)))
    rows = [row for table in source.tables() for row in table.to_pylist()]
    name = rows[0]["url"].rpartition("/")[0]
    assert (tmp_path / name).is_file()
    assert rows == [
        {
            "uid": uid_of(f"{name}/{number}"),
            "url": f"{name}/{number}",
            "captions": [f"caption {number}"],
            "extra": {"license": f"cc-{number}"},
        }
        for number in range(COUNT + 1)
    ]
    fetch = fetcher_of(source, [row["url"] for row in rows])
    assert [fetch(row["url"]) for row in rows[:-1]] == pictures
    with pytest.raises(FetchFault, match="failed:missing_file"):
        fetch(rows[-1]["url"])
    with pytest.raises(FetchFault, match="failed:too_large"):
        fetcher_of(source, [rows[0]["url"]], max_download_bytes=10)(rows[0]["url"])


@pytest.mark.parametrize("form", ["polars.parquet", "stream.arrow"])
def test_any_order_and_many_threads_get_each_its_picture(tmp_path, monkeypatch, pictures, form):
    monkeypatch.setattr("pipeline.table_files._BLOCK_BYTES", 4000)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, pictures if folder == "a" else pictures[::-1], form)
    source = open_source(f"{tmp_path}/*/*", SourceColumns())
    urls = [row["url"] for table in source.tables() for row in table.to_pylist()]
    expected = dict(zip(urls, [*pictures, None, *pictures[::-1], None], strict=True))
    suffix = form.partition(".")[2]
    assert urls[0] == f"a/a.{suffix}/0"
    asked = [url for url, data in expected.items() if data]
    random.Random(0).shuffle(asked)
    fetch = source.open_fetcher(FetchConfig())
    for some in (asked, asked[:9]):
        fetch.expect(some)
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(fetch, some)) == [expected[url] for url in some]


@pytest.fixture
def batches_read(monkeypatch) -> list[tuple[str, int, int]]:
    """The batches of pictures that were read: file, first row, rows."""
    read = []
    open_batches = picture_tables.arrow_batches

    def recording(file, names, first_row):
        for first, batch in open_batches(file, names, first_row):
            read.append((str(file), first, batch.num_rows))
            yield first, batch

    monkeypatch.setattr(picture_tables, "arrow_batches", recording)
    return read


@pytest.mark.parametrize("form", FORMS)
def test_a_shard_reads_a_batch_once_however_late_its_threads_are(
    tmp_path, monkeypatch, pictures, batches_read, form
):
    monkeypatch.setattr("pipeline.table_files._BLOCK_BYTES", 4000)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, pictures, form)
    source = open_source(f"{tmp_path}/*/*.[ap]*", SourceColumns())  # .arrow, .parquet
    (slice_,) = cut(source.tables(), 1000)
    dice = random.Random(0)

    def late(location: str) -> bytes:
        """A thread may be held up between taking its row and asking for it."""
        time.sleep(dice.choice([0, 0, 0.05]))
        return fetch(location)

    fetch = source.open_fetcher(FetchConfig())
    fetch.expect(slice_.column("url").to_pylist())
    got = download(slice_, late, PictureConfig(), threads=32)
    assert got.pictures == Account(62, 60, {"failed:missing_file": 2})
    assert len(set(batches_read)) == len(batches_read)
    assert sum(rows for _, _, rows in batches_read) == 62


@pytest.mark.parametrize("form", ["datasets.parquet", "feather.arrow", "stream.arrow"])
def test_tables_of_pictures_on_an_object_store_are_those_of_a_disk(
    tmp_path, pictures, bucket, form
):
    fs, options = bucket
    write(tmp_path, pictures, form)
    pafs.copy_files(str(tmp_path), f"tables/{form}", destination_filesystem=fs)
    here = open_source(str(tmp_path), SourceColumns())
    (slice_,) = cut(here.tables(), 1000)
    urls = slice_.column("url").to_pylist()
    for location in (f"s3://tables/{form}?{options}", f"s3://tables/{form}/*.[ap]*?{options}"):
        there = open_source(location, SourceColumns())
        assert there.digest() == here.digest()
        assert next(cut(there.tables(), 1000)).equals(slice_)
        fetch = fetcher_of(there, urls)
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(fetch, urls[:-1])) == pictures


def test_what_is_no_row_is_no_path(tmp_path, pictures):
    write(tmp_path, pictures[:2], "polars.parquet")
    wrong = {
        **dict.fromkeys(("a.parquet", "b.parquet/0", "a.parquet/-1", "../a.parquet/0"), "bad_path"),
        **dict.fromkeys(("a.parquet/0x1", "/etc/passwd", "a.parquet/", ""), "bad_path"),
        **dict.fromkeys(("a.parquet/3", "a.parquet/99999999999999999999999"), "missing_file"),
    }
    source = open_source(str(tmp_path), SourceColumns())
    fetch = fetcher_of(source, [*wrong, "a.parquet/1"])
    for location, outcome in wrong.items():
        with pytest.raises(FetchFault, match=f"^failed:{outcome}$"):
            fetch(location)
    assert fetch("a.parquet/1") == pictures[1]


def test_a_damaged_picture_column_fails_its_rows_and_no_others(tmp_path, pictures):
    write(tmp_path, pictures, "polars.parquet")
    path = tmp_path / "a.parquet"
    whole = path.read_bytes()
    column = pa.parquet.ParquetFile(path).metadata.row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    path.write_bytes(whole[:start] + b"\xff" * 60 + whole[start + 60 :])
    source = open_source(str(tmp_path), SourceColumns())
    assert sum(table.num_rows for table in source.tables()) == COUNT + 1
    lost, whole = range(11, 22), [*range(11), *range(22, COUNT)]
    fetch = fetcher_of(source, [f"a.parquet/{row}" for row in range(COUNT)])
    for row in lost:
        with pytest.raises(FetchFault, match="failed:unreadable_file"):
            fetch(f"a.parquet/{row}")
    assert [fetch(f"a.parquet/{row}") for row in whole] == [pictures[row] for row in whole]


def test_urls_go_before_pictures_unless_the_column_is_named(tmp_path, pictures):
    columns = {"url": ["http://a/b"], "photo": [pictures[0]], "caption": ["x"]}
    pa.parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    path = str(tmp_path / "t.parquet")
    assert open_source(path, SourceColumns()).locations == "url"
    named = open_source(path, SourceColumns(picture_column="photo"))
    assert named.locations == "row"
    assert fetcher_of(named, ["t.parquet/0"])("t.parquet/0") == pictures[0]
    with pytest.raises(ConfigError, match=r"t\.parquet: 'caption' is string, which is no picture"):
        open_source(path, SourceColumns(picture_column="caption"))
    with pytest.raises(ConfigError, match=r"is not used, .*has pictures in its column 'photo'"):
        open_source(path, SourceColumns(picture_column="photo"), str(tmp_path))


def test_the_digest_covers_what_the_rows_say(tmp_path, pictures):
    write(tmp_path, pictures[:3], "polars.parquet")
    path = str(tmp_path / "a.parquet")
    digests = {open_source(path, SourceColumns()).digest()}
    digests.add(open_source(path, SourceColumns(keep=("license",))).digest())
    digests.add(open_source(path, SourceColumns(caption_column="license")).digest())
    write(tmp_path, pictures[:2], "polars.parquet")
    digests.add(open_source(path, SourceColumns()).digest())
    assert len(digests) == 4
    write(tmp_path, pictures[:3], "datasets.parquet")  # the same rows, packed otherwise
    assert open_source(path, SourceColumns()).digest() in digests


def test_a_decoded_picture_is_that_of_its_row(tmp_path):
    """datasets encodes pictures itself; what it wrote is what a reader of it would see."""
    shown = [Image.new("RGB", (4, 3), (number * 40, 0, 0)) for number in range(3)]
    columns = {"image": shown, "caption": ["a", "b", "c"]}
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "t.parquet")
    fetch = fetcher_of(open_source(str(tmp_path), SourceColumns()), ["t.parquet/1"])
    assert isinstance(fetch, TableFetcher)
    (tmp_path / "1.png").write_bytes(fetch("t.parquet/1"))
    assert Image.open(tmp_path / "1.png").getpixel((0, 0)) == (40, 0, 0)
