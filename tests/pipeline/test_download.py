"""No row of a slice is lost, none is out of order, and both accounts add up."""

import subprocess
import sys
import threading
import time
from collections import Counter

import pyarrow as pa
import pytest
from PIL import Image

import pipeline.download
from pipeline.accounting import Account
from pipeline.download import Downloaded, download
from pipeline.fetch import FetchConfig, FetchFault
from pipeline.pictures import PictureConfig, store
from pipeline.schemas import KEPT, LEDGER, RAW, SLICE
from pipeline.sources import SourceColumns, cut, open_source

FIRST_ROW = 4096


def slice_of(count: int) -> pa.Table:
    """Rows whose URL is their number, with 0 to 2 captions."""
    return pa.table(
        {
            "uid": [row.to_bytes(16, "big") for row in range(count)],
            "url": [str(row) for row in range(count)],
            "captions": [[f"{row}.{n}" for n in range(row % 3)] for row in range(count)],
            "source_row": range(FIRST_ROW, FIRST_ROW + count),
        },
        schema=SLICE,
    )


@pytest.fixture(scope="module")
def picture(encode, noise):
    """The bytes of a picture that tells its number: `picture(7)`; 7 + 10 pixels wide."""
    return lambda number: encode(noise(number, width=number + 10), "PNG")


def run(slice_: pa.Table, fetch, config=None, *, threads: int = 4) -> Downloaded:
    return download(slice_, fetch, config or PictureConfig(), threads=threads)


def check(got: Downloaded, slice_: pa.Table, outcomes: list[str]) -> None:
    """Everything that follows from the slice and its outcomes, in plain loops."""
    assert got.ledger.schema.equals(LEDGER)
    assert got.raw.schema.equals(RAW)
    rows = slice_.to_pylist()
    assert got.ledger.to_pylist() == [
        {**row, "outcome": outcome} for row, outcome in zip(rows, outcomes, strict=True)
    ]
    kept = [row for row, outcome in zip(rows, outcomes, strict=True) if outcome == KEPT]
    assert got.raw.column("uid").to_pylist() == [row["uid"] for row in kept]
    assert got.raw.column("url").to_pylist() == [row["url"] for row in kept]
    assert got.raw.column("captions").to_pylist() == [
        [{"text": text, "source": "web", "status": KEPT} for text in row["captions"]]
        for row in kept
    ]
    dropped: Counter[str] = Counter()
    for row, outcome in zip(rows, outcomes, strict=True):
        if outcome != KEPT and row["captions"]:
            dropped[f"picture:{outcome}"] += len(row["captions"])
    reasons = Counter(outcome for outcome in outcomes if outcome != KEPT)
    assert got.pictures == Account(len(rows), len(kept), reasons)
    num_captions = sum(len(row["captions"]) for row in rows)
    num_kept = sum(len(row["captions"]) for row in kept)
    assert got.captions == Account(num_captions, num_kept, dropped)


def test_the_order_of_the_source_is_restored_whatever_the_order_of_arrival(picture):
    count = 8
    arrived = []

    def late_first(location: str) -> bytes:
        time.sleep(0.02 * (count - int(location)))
        arrived.append(int(location))
        return picture(int(location))

    slice_ = slice_of(count)
    got = run(slice_, late_first, threads=count)
    assert arrived != sorted(arrived)
    check(got, slice_, [KEPT] * count)
    assert got.raw.column("original_width_px").to_pylist() == [row + 10 for row in range(count)]


def test_each_row_has_its_own_picture_as_it_is_stored(picture):
    config = PictureConfig(short_side_px=8)
    got = run(slice_of(12), lambda location: picture(int(location)), config, threads=3)
    for number, row in enumerate(got.raw.to_pylist()):
        stored = store(picture(number), config)
        assert row["picture"] == stored.jpeg
        assert (row["width_px"], row["height_px"]) == stored.size_px
        assert (row["original_width_px"], row["original_height_px"]) == (number + 10, 12)


def test_faults_of_all_kinds_lose_their_own_row_alone(picture, encode, caplog):
    def fetch(location: str) -> bytes:
        number = int(location)
        if number % 6 == 1:
            raise FetchFault("failed:http_404")
        if number % 6 == 2:
            raise KeyError(location)
        if number % 6 == 3:
            return b"<html>"
        if number % 6 == 4:
            return encode(Image.new("RGB", (90, 90)), "PNG")
        return picture(number)

    words = [KEPT, "failed:http_404", "failed:internal", "failed:not_a_picture"]
    words += ["dropped:too_many_pixels", KEPT]
    slice_ = slice_of(25)
    got = run(slice_, fetch, PictureConfig(max_decoded_px=8000))
    check(got, slice_, [words[number % 6] for number in range(25)])
    assert "location='2'" in caplog.text  # what was not foreseen is logged


def test_a_bug_in_decoding_loses_its_own_row_alone(picture, monkeypatch, caplog):
    def crash_at_two(data: bytes, config: PictureConfig):
        if data == picture(2):
            raise KeyError("bug")
        return store(data, config)

    monkeypatch.setattr(pipeline.download, "store", crash_at_two)
    slice_ = slice_of(4)
    got = run(slice_, lambda location: picture(int(location)))
    check(got, slice_, [KEPT, KEPT, "failed:internal", KEPT])
    assert "picture failed" in caplog.text


def test_a_row_that_img2dataset_loses_is_accounted_for(picture, monkeypatch):
    def odd_at_two(data: bytes, config: PictureConfig):
        return None if data == picture(2) else store(data, config)  # None breaks its own loop

    monkeypatch.setattr(pipeline.download, "store", odd_at_two)
    slice_ = slice_of(4)
    got = run(slice_, lambda location: picture(int(location)))
    check(got, slice_, [KEPT, KEPT, "failed:internal", KEPT])


@pytest.mark.parametrize("answer", [None, "text", 5])
def test_a_fetcher_that_gives_no_bytes_fails_and_loses_no_row(answer):
    got = run(slice_of(3), lambda _: answer)
    assert got.pictures.num_in == 3
    assert all(
        outcome.startswith("failed:") for outcome in got.ledger.column("outcome").to_pylist()
    )


def test_a_slice_of_one_row(picture):
    got = run(slice_of(1), lambda _: picture(0))
    check(got, slice_of(1), [KEPT])


def test_a_slice_of_no_rows():
    got = run(slice_of(0), lambda _: pytest.fail("nothing is to be fetched"))
    check(got, slice_of(0), [])


def test_a_slice_of_which_nothing_arrives():
    def fetch(_: str) -> bytes:
        raise FetchFault("failed:dns")

    check(run(slice_of(5), fetch), slice_of(5), ["failed:dns"] * 5)


def test_one_url_may_be_there_several_times(picture):
    slice_ = slice_of(6).set_column(1, "url", pa.array(["same"] * 6))
    check(run(slice_, lambda _: picture(1)), slice_, [KEPT] * 6)


@pytest.mark.parametrize("threads", [1, 2, 16])
def test_the_result_does_not_depend_on_the_number_of_threads(picture, threads):
    def fetch(location: str) -> bytes:
        if int(location) % 4 == 0:
            raise FetchFault("failed:timeout")
        return picture(int(location))

    assert run(slice_of(20), fetch, threads=threads) == run(slice_of(20), fetch, threads=5)


def test_no_more_fetches_run_at_once_than_there_are_threads(picture):
    lock, running, most = threading.Lock(), [0], [0]

    def fetch(location: str) -> bytes:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.02)
        with lock:
            running[0] -= 1
        return picture(int(location))

    run(slice_of(12), fetch, threads=3)
    assert 1 < most[0] <= 3


def test_rows_that_the_shards_time_does_not_reach_are_left_for_another_time(picture):
    def fetch(location: str) -> bytes:
        time.sleep(0.2)
        return picture(int(location))

    got = download(slice_of(20), fetch, PictureConfig(), threads=2, timeout_s=0.3)
    outcomes = got.ledger.column("outcome").to_pylist()
    assert outcomes[:2] == [KEPT, KEPT]
    assert set(outcomes[6:]) == {"failed:deadline"}
    assert got.pictures.num_kept == outcomes.count(KEPT)


def test_time_spent_on_decoding_is_not_the_shards(picture, monkeypatch):
    def slow(data: bytes, config: PictureConfig):
        time.sleep(0.1)
        return store(data, config)

    monkeypatch.setattr(pipeline.download, "store", slow)
    fetch = lambda location: picture(int(location))  # noqa: E731
    got = download(slice_of(12), fetch, PictureConfig(), threads=2, timeout_s=0.8)
    assert got.pictures == Account.all_kept(12)


def test_a_host_holds_no_more_threads_than_it_may():
    lock, running, most = threading.Lock(), [0], [0]

    def fetch(location: str) -> bytes:
        if "slow" in location:
            with lock:
                running[0] += 1
                most[0] = max(most[0], running[0])
            time.sleep(0.02)
            with lock:
                running[0] -= 1
        raise FetchFault("failed:http_404")

    urls = ["http://slow.test/"] * 12 + [f"http://{n}.test/" for n in range(12)]
    slice_ = slice_of(24).set_column(1, "url", pa.array(urls))
    got = download(slice_, fetch, PictureConfig(), threads=8, per_host=2)
    assert got.pictures == Account(24, 0, {"failed:http_404": 24})
    assert most == [2]


def test_two_slices_downloaded_at_once_do_not_mix_their_fetchers(picture):
    results: dict[str, Downloaded] = {}

    def work(name: str) -> None:
        def fetch(location: str) -> bytes:
            time.sleep(0.01)  # long enough for the other to be begun
            raise FetchFault(f"failed:{name}")

        results[name] = run(slice_of(20), fetch, threads=2)

    workers = [threading.Thread(target=work, args=(name,)) for name in ("one", "other")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for name in ("one", "other"):
        assert results[name].pictures == Account(20, 0, {f"failed:{name}": 20})


_DOWNLOAD_ALONE = """
import sys
import pyarrow as pa
from pipeline.download import download
from pipeline.pictures import PictureConfig
from pipeline.schemas import SLICE

rows = {"uid": [bytes(16)] * 3, "url": ["a", "b", "c"], "captions": [[]] * 3}
rows["source_row"] = range(3)
for _ in range(2):
    got = download(pa.table(rows, SLICE), lambda _: b"x", PictureConfig(), threads=2)
    assert got.pictures.dropped == {"failed:not_a_picture": 3}
assert not {"torch", "albumentations", "cv2"} & set(sys.modules)
"""


def test_a_worker_that_downloads_does_not_load_torch():
    subprocess.run([sys.executable, "-c", _DOWNLOAD_ALONE], check=True, timeout=100)


def test_a_folder_comes_through_whole(tmp_path, noise):
    for number in range(5):
        noise(number).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"picture {number}")
    (tmp_path / "3.png").write_bytes(b"no picture")
    (tmp_path / "5.jpg").mkdir()
    source = open_source(str(tmp_path), SourceColumns())
    fetch = source.open_fetcher(FetchConfig())
    slices = list(cut(source.tables(), 4))
    got = [download(slice_, fetch, PictureConfig(), threads=2) for slice_ in slices]
    assert [row for g in got for row in g.ledger.column("outcome").to_pylist()] == [
        *[KEPT] * 3,
        "failed:not_a_picture",
        KEPT,
        "failed:unreadable_file",
    ]
    assert [row for g in got for row in g.ledger.column("source_row").to_pylist()] == list(range(6))
    assert got[1].raw.to_pylist()[0]["captions"][0]["text"] == "picture 4"
    assert Account.total(g.pictures for g in got).num_in == 6
