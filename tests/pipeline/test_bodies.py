"""Large pictures wait for their decoding in files, wherever they come from."""

import errno
import io
import tarfile
import tempfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from pipeline.bodies import IN_MEMORY_BYTES, gathered
from pipeline.fetch import FetchConfig, Fetcher
from pipeline.sources import open_source
from pipeline.url_tables import SourceColumns

SMALL, LARGE = b"a" * IN_MEMORY_BYTES, b"b" * (2 * IN_MEMORY_BYTES + 1)
KINDS = ["tar", "parquet", "arrow", "folder"]


def source_of(path: Path, kind: str, pictures: list[bytes]) -> tuple[Fetcher, list[str]]:
    """A source of these pictures, as a worker has it, and their locations."""
    if kind == "tar":
        with tarfile.open(path / "t.tar", "w") as tar:
            for number, picture in enumerate(pictures):
                info = tarfile.TarInfo(f"{number:02}.jpg")
                info.size = len(picture)
                tar.addfile(info, io.BytesIO(picture))
    elif kind == "folder":
        for number, picture in enumerate(pictures):
            (path / f"{number:02}.jpg").write_bytes(picture)
    else:
        table = pa.table({"image": pictures, "caption": ["x"] * len(pictures)})
        if kind == "parquet":
            alone = {"use_dictionary": False, "write_batch_size": 1}  # a page for each picture
            pa.parquet.write_table(table, path / "t.parquet", **alone)
        else:
            with pa.ipc.new_file(path / "t.arrow", table.schema) as writer:
                writer.write_table(table)
    source = open_source(str(path), SourceColumns())
    urls = [url for rows in source.tables() for url in rows.column("url").to_pylist()]
    fetch = source.open_fetcher(FetchConfig())
    fetch.expect(urls)
    return fetch, urls


def test_many_bytes_are_a_file_and_few_are_not():
    assert gathered([]) == b""
    assert gathered([b"a", b"", b"b"]) == gathered([b"ab"], 2) == b"ab"
    assert gathered([SMALL]) == SMALL
    assert gathered([b"fewer than said"], 2 * IN_MEMORY_BYTES) == b"fewer than said"
    for num_bytes in (0, IN_MEMORY_BYTES + 1):
        with gathered([b"<", SMALL], num_bytes) as body:
            assert body.fileno() >= 0  # it has none while it is in memory
            assert body.read() == b"<" + SMALL


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_picture_of_a_source_is_a_file_and_a_small_one_is_not(tmp_path, kind):
    fetch, urls = source_of(tmp_path, kind, [SMALL, LARGE, b"c"])
    large = fetch(urls[1])  # before the one that comes first
    assert [fetch(urls[0]), fetch(urls[2])] == [SMALL, b"c"]
    with large:
        assert large.fileno() >= 0
        assert large.read() == LARGE


@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_pictures_that_wait_take_little_memory_each(tmp_path, kind):
    fetch, urls = source_of(tmp_path, kind, [LARGE * 2] * 16)
    tracemalloc.start()
    try:
        with ThreadPoolExecutor(4) as threads:
            bodies = list(threads.map(fetch, urls))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert {len(body.read()) for body in bodies} == {2 * len(LARGE)}
    assert peak_bytes < 5 * IN_MEMORY_BYTES  # a piece for each thread


def test_pictures_of_a_table_that_wait_take_little_memory_each(tmp_path):
    pictures = [bytes([number]) * len(LARGE) for number in range(16)]
    fetch, urls = source_of(tmp_path, "parquet", pictures)
    last = fetch(urls[-1])  # the others are read, and wait to be asked for
    assert pa.total_allocated_bytes() < 6 * len(LARGE)
    for picture, body in zip(pictures, [*map(fetch, urls[:-1]), last], strict=True):
        with body:
            assert body.read() == picture


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_without_room_is_no_fault_of_the_source(tmp_path, monkeypatch, kind):
    fetch, urls = source_of(tmp_path, kind, [LARGE, b"c"])

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    assert fetch(urls[1]) == b"c"
    with pytest.raises(OSError, match="No space left"):
        fetch(urls[0])
