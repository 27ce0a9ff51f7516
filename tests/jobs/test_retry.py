"""The whole path of what failed: ingest, fetch again, curate both."""

import http.server
import json
import threading
from pathlib import Path

import pytest

from jobs.cli import main
from pipeline.accounting import Account
from pipeline.dataset import Dataset
from pipeline.lineage import Parent
from pipeline.uids import uid_of_url
from pipeline.verify import verify

pytestmark = pytest.mark.usefixtures("ray_session")

ONCE = ("--allow-host", "127.0.0.1", "--retries", "0")


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


class Flaky(http.server.SimpleHTTPRequestHandler):
    """Answers 503 to what `down` names, and 404 to what there is not."""

    down: frozenset[str] = frozenset()
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path in self.down:
            self.send_error(503)
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(make_folder):
    """A folder of 12 pictures on loopback, two of them absent, and its handler's class."""
    folder = make_folder(12)
    for number in (3, 10):
        (folder / "images" / f"{number:04}.png").unlink()

    class Handler(Flaky):
        asked: list[str] = []  # noqa: RUF012

        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder))

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", Handler
    server.shutdown()
    server.server_close()


def list_urls(path: Path, address: str, count: int = 12) -> Path:
    """Each picture once, with a caption; number 5 a second time, with another."""
    rows = [(number, f"hill {number}") for number in range(count)] + [(5, "hill 5 again")]
    lines = [
        {"url": f"{address}/images/{n:04}.png", "caption": text, "license": f"cc-{row}"}
        for row, (n, text) in enumerate(rows)
    ]
    lines[0]["page"] = "http://a.org/"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_what_failed_is_fetched_again_alone_and_curate_takes_both(tmp_path, site):
    address, handler = site
    table = list_urls(tmp_path / "urls.jsonl", address)
    handler.down = frozenset(f"/images/{number:04}.png" for number in (1, 4, 5, 10))
    keep = ("--keep", "license,page")
    run("ingest", table, "--out", tmp_path / "raw", *ONCE, "--shard-rows", 5, *keep)
    raw = Dataset.open(str(tmp_path / "raw"))
    assert raw.manifest.pictures == Account(13, 7, {"failed:http_404": 1, "failed:http_503": 5})

    handler.down = frozenset(["/images/0004.png"])
    handler.asked.clear()
    run("ingest", "--retry", tmp_path / "raw", "--out", tmp_path / "raw-2", *ONCE)
    again = Dataset.open(str(tmp_path / "raw-2"))
    assert sorted(set(handler.asked)) == [f"/images/{n:04}.png" for n in (1, 4, 5, 10)]
    assert again.manifest.pictures == Account(5, 3, {"failed:http_404": 1, "failed:http_503": 1})
    assert again.manifest.lineage.parents == (Parent("raw", raw.digest),)
    assert "http_5*" in again.manifest.lineage.config["retry"]
    ledger = again.attachment(0, "ledger").to_pylist()
    assert [row["source_row"] for row in ledger] == [1, 4, 5, 10, 12]
    assert ledger[-1]["captions"] == ["hill 5 again"]
    assert ledger[-1]["extra"] == {"license": "cc-12", "page": None}
    assert list(verify(again)) == []

    run("curate", tmp_path / "raw", tmp_path / "raw-2", "--out", tmp_path / "pairs")
    pairs = Dataset.open(str(tmp_path / "pairs"))
    assert list(verify(pairs)) == []
    # Picture 6 shows what 5 does, and 5 is listed twice.
    assert pairs.manifest.pictures == Account(10, 8, {"duplicate": 2})
    assert pairs.manifest.captions == Account.all_kept(10)
    rows = [row for shard in pairs.shards() for row in shard.table.to_pylist()]
    numbers = [0, 2, 6, 7, 8, 9, 11, 1]
    assert [row["uid"] for row in rows] == [
        uid_of_url(f"{address}/images/{number:04}.png") for number in numbers
    ]
    licenses = [row["extra"]["license"] for row in rows]  # of the rows whose pictures are kept
    assert licenses == [f"cc-{number}" for number in numbers]
    texts = [caption["text"] for caption in rows[2]["captions"]]
    assert texts == ["hill 6", "hill 5", "hill 5 again"]


@pytest.mark.slow
def test_a_retry_of_files_needs_the_source_and_may_have_nothing_to_do(
    tmp_path, make_folder, capsys
):
    folder = make_folder(6)
    lost = folder / "images" / "0002.png"
    lost.rename(tmp_path / "0002.png")
    run("ingest", folder, "--out", tmp_path / "raw")
    (tmp_path / "0002.png").rename(lost)
    again = ["--retry", tmp_path / "raw", "--out", tmp_path / "raw-2", "--retry-classes", "*"]
    assert main(["ingest", *map(str, again)]) == 2
    assert "was made of a source's files; name the source too" in capsys.readouterr().err
    run("ingest", folder, *again)
    raw = Dataset.open(str(tmp_path / "raw-2"))
    assert raw.manifest.pictures == Account.all_kept(1)
    assert raw.shard(0).table.column("url").to_pylist() == ["images/0002.png"]

    run("ingest", folder, "--retry", tmp_path / "raw-2", "--out", tmp_path / "raw-3")
    assert Dataset.open(str(tmp_path / "raw-3")).manifest.pictures == Account.all_kept(0)
    raws = [tmp_path / name for name in ("raw", "raw-2", "raw-3")]
    run("curate", *raws, "--out", tmp_path / "pairs")
    assert Dataset.open(str(tmp_path / "pairs")).num_rows == 6


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ((), "source: name what to read, or with --retry an earlier raw"),
        (("SOURCE", "--retry-classes", "dns"), "retry_classes: are those of --retry"),
        (("--retry", "nowhere"), "nowhere: no such folder"),
        (("SOURCE", "--deadline-s", "600"), "shard_timeout_s: 600 is not below deadline_s 600"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, capsys, options, line):
    assert main(["ingest", *options, "--out", str(tmp_path / "raw")]) == 2
    assert line in capsys.readouterr().err
    assert not (tmp_path / "raw").exists()
