"""From a table to pairs on an object store: the datasets are those of a local disk."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from jobs.cli import main
from pipeline.dataset import Dataset

pytestmark = pytest.mark.slow


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


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


@pytest.mark.usefixtures("ray_session")
def test_what_is_taken_down_and_erased_on_an_object_store_is_what_is_on_a_disk(
    tmp_path, bucket, make_folder, capsys
):
    fs, uri = bucket
    source = make_folder(16)
    (tmp_path / "list.txt").write_text("images/0005.png\nimages/0001.png\nimages/none.png\n")
    pafs.copy_files(f"{tmp_path}/list.txt", "bucket/list.txt", destination_filesystem=fs)
    told = []
    for at in (lambda name: str(tmp_path / name), uri):
        run("ingest", source, "--out", at("run/raw"), "--shard-rows", 6)
        run("curate", at("run/raw"), "--out", at("run/pairs"), "--shard-rows", 5)
        # Picture 6 shows what 5 does, so it goes with it.
        for options, erased in (((), []), (("--erase",), [3, 2]), (("--erase",), [0, 0])):
            capsys.readouterr()
            run("takedown", at("list.txt"), "--in", at("run"), *options, "--json")
            told.append(json.loads(capsys.readouterr().out))
            assert sorted(told[-1]["erased_rows"].values(), reverse=True) == erased
            for name in ("run/raw", "run/pairs"):
                run("inspect", at(name), "--verify")
    for here, there in zip(told[:3], told[3:], strict=True):
        assert here["taken_down"] == there["taken_down"] == 3
        assert here["unmatched"] == there["unmatched"] == ["images/none.png"]
        assert here["copies"] == there["copies"]
    for name in ("run/raw", "run/pairs"):
        here, there = Dataset.open(str(tmp_path / name)), Dataset.open(uri(name))
        assert here.tombstones == there.tombstones
        for number in here.records:
            assert here.shard(number).table.equals(there.shard(number, verify=True).table)
        # What was erased is nowhere: no file but those that the records name is left.
        files = {entry.file for record in there.records.values() for entry in record.files}
        arrow = [name for name in there.folder.files() if name.endswith(".arrow")]
        assert set(arrow) == {file for file in files if "/" not in file}


@pytest.mark.usefixtures("ray_session")
def test_a_retry_on_an_object_store_is_curated_with_what_it_completes(
    tmp_path, bucket, make_folder
):
    _, uri = bucket
    source = make_folder(9)
    lost = source / "images" / "0002.png"
    data = lost.read_bytes()
    digests = []
    for at in (lambda name: str(tmp_path / name), uri):
        lost.unlink()
        run("ingest", source, "--out", at("first"), "--shard-rows", 4)
        lost.write_bytes(data)
        again = ("--retry", at("first"), "--retry-classes", "missing_file")
        run("ingest", source, *again, "--out", at("second"))
        run("curate", at("first"), at("second"), "--out", at("both"))
        both = Dataset.open(at("both"))
        assert (both.num_rows, both.manifest.pictures.num_in) == (8, 9)  # 6 shows what 5 does
        digests.append(both.digest)
    assert digests[0] == digests[1]


@pytest.mark.usefixtures("ray_session")
def test_training_from_an_object_store_is_that_from_a_disk(
    tmp_path, bucket, data, stage1_command, rank_here, read_training
):
    """Through a cache that holds two of the four shards of features."""
    fs, uri = bucket
    for name in ("features", "pairs"):
        pafs.copy_files(str(data / name), f"bucket/trained-{name}", destination_filesystem=fs)
    largest = max(path.stat().st_size for path in (data / "features").glob("*.arrow"))
    order = ("--shuffle", "lanes", "--num-lanes", 2, "--window", 8, "--steps", 12)
    there = ("--features", uri("trained-features"), "--captions", uri("trained-pairs"))
    cache = tmp_path / "cache"
    room = ("--cache", cache, "--cache-bytes", 2 * largest)
    with rank_here():
        run(*stage1_command(tmp_path / "disk", *order))
        run(*stage1_command(tmp_path / "store", *order, *there, *room))
    assert read_training(tmp_path / "store") == read_training(tmp_path / "disk")
    held = [path.stat().st_size for path in cache.glob("*.arrow")]
    assert 0 < sum(held) <= 2 * largest


@pytest.mark.usefixtures("ray_session")
def test_an_evaluation_on_an_object_store_is_that_on_a_disk(
    tmp_path, bucket, data, unbroken, embeddings
):
    fs, uri = bucket
    for folder in (data / "features", data / "pairs", embeddings):
        copy = f"bucket/evaluated-{folder.name}"
        pafs.copy_files(str(folder), copy, destination_filesystem=fs)
    options = ("--checkpoint", unbroken, "--rerank", 4)

    def evaluate(where: Callable[[str], object], embedded: object, out: object) -> None:
        seen = ("--features", where("features"), "--captions", where("pairs"))
        run("evaluate", embedded, *seen, *options, "--out", out)

    evaluate(lambda name: data / name, embeddings, tmp_path / "evaluation.json")
    evaluate(
        lambda name: uri(f"evaluated-{name}"), uri("evaluated-embeddings"), uri("evaluation.json")
    )
    with fs.open_input_stream("bucket/evaluation.json") as file:
        there, here = json.load(file), json.loads((tmp_path / "evaluation.json").read_text())
    assert there["recall"] == here["recall"]
