"""From a table to pairs on an object store: the datasets are those of a local disk."""

import json
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from moto.server import ThreadedMotoServer

from jobs.cli import main
from pipeline.dataset import Dataset

pytestmark = pytest.mark.slow


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def bucket():
    """An empty bucket on loopback: its filesystem, and the URI of what is in it by name."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = f"endpoint_override={host}%3A{port}&scheme=http&region=us-east-1"
    uri = f"s3://key:secret@bucket{{}}?{options}"
    fs, _ = pafs.FileSystem.from_uri(uri.format("") + "&allow_bucket_creation=true")
    fs.create_dir("bucket")
    yield fs, lambda name: uri.format(f"/{name}")
    server.stop()


def write_urls(source: Path, address: str, out: Path) -> None:
    """The pairs of a folder as a table of URLs, with one row that fails and one that is refused."""
    rows = map(json.loads, (source / "pairs.jsonl").read_text().splitlines())
    lines = [json.dumps({**row, "url": f"{address}/{row['file']}"}) for row in rows]
    others = (f"{address}/absent.png", "http://10.0.0.1/a.png")
    lines += [json.dumps({"url": url, "captions": ["nothing there"]}) for url in others]
    out.write_text("\n".join(lines) + "\n")


@pytest.mark.usefixtures("ray_session")
def test_jobs_on_an_object_store_make_what_they_make_on_a_disk(
    tmp_path, bucket, make_folder, serve, capsys
):
    fs, uri = bucket
    source = make_folder(30)
    write_urls(source, serve(source), tmp_path / "urls.jsonl")
    pafs.copy_files(f"{tmp_path}/urls.jsonl", "bucket/urls.jsonl", destination_filesystem=fs)
    options = ("--shard-rows", 10, "--allow-host", "127.0.0.1")
    here = {name: str(tmp_path / name) for name in ("raw", "pairs")}
    there = {name: uri(name) for name in ("raw", "pairs")}
    for table, at in ((tmp_path / "urls.jsonl", here), (uri("urls.jsonl"), there)):
        run("ingest", table, "--out", at["raw"], *options)
        run("curate", at["raw"], "--out", at["pairs"], "--shard-rows", 8)
    for name in ("raw", "pairs"):
        assert Dataset.open(there[name]).digest == Dataset.open(here[name]).digest
        capsys.readouterr()
        run("inspect", there[name], "--verify")
        assert Dataset.open(there[name]).digest[:16] in capsys.readouterr().out
    names = [info.path for info in fs.get_file_info(pafs.FileSelector("bucket/raw"))]
    assert not [name for name in names if ".tmp-" in name or name.endswith(".work")]


@pytest.mark.usefixtures("ray_session")
def test_a_job_on_an_object_store_makes_again_only_what_is_lost(
    tmp_path, bucket, make_folder, serve
):
    fs, uri = bucket
    source = make_folder(30)
    write_urls(source, serve(source), tmp_path / "urls.jsonl")
    command = ["ingest", tmp_path / "urls.jsonl", "--out", uri("again"), "--shard-rows", 10]
    run(*command, "--allow-host", "127.0.0.1")
    digest = Dataset.open(uri("again")).digest
    before = {i.path: i.mtime_ns for i in fs.get_file_info(pafs.FileSelector("bucket/again"))}
    lost = [path for path in before if "/00001-" in path]
    assert len(lost) == 1
    fs.delete_file(lost[0])
    run(*command, "--allow-host", "127.0.0.1")
    assert Dataset.open(uri("again")).digest == digest
    after = {i.path: i.mtime_ns for i in fs.get_file_info(pafs.FileSelector("bucket/again"))}
    kept = [path for path in before if "/00000-" in path or "/00002-" in path]
    assert [before[path] for path in kept] == [after[path] for path in kept]
