"""What is taken down is seen by nobody any more; what is erased is nowhere; and both are told."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from indexes.adding import next_addition, publish_addition
from indexes.building import build as build_index
from indexes.retrieval import RetrievalIndex
from indexes.sources import Sources
from indexes.storage import begin
from jobs.cli import main
from pipeline.accounting import Account
from pipeline.candidates import candidate_rows, candidates_of, caption_account, with_scores
from pipeline.dataset import Dataset, check_side_by_side
from pipeline.draft import Draft
from pipeline.embeddings import image_rows
from pipeline.features import token_columns
from pipeline.lineage import Lineage
from pipeline.loader import Pairs
from pipeline.schemas import CANDIDATES, LEDGER, PAIRS, PLAN, RAW, features_schema
from pipeline.shard import commit_table, new_shard
from pipeline.storage import Folder
from pipeline.tombstones import read_tombstones
from pipeline.uids import uid_of_url
from pipeline.verify import verify

NUM, P, C, Q, E = 12, 2, 4, 2, 4
URLS = [f"http://example.org/secret-{row:02d}.jpg" for row in range(NUM)]
COPY = "http://example.org/copy.jpg"  # curate united it with row 5
LOST = "http://example.org/not-there.jpg"  # in the ledger alone


def pair(url: str) -> dict:
    texts = [(f"words of {url}", "kept"), ("", "rejected:empty")]
    return {
        "uid": uid_of_url(url),
        "url": url,
        "picture": f"jpeg of {url}".encode(),
        "width_px": 3,
        "captions": [{"text": text, "source": "web", "status": status} for text, status in texts],
        "split": "train",
    }


def publish(home: Path, tables: list[pa.Table], lineage: Lineage) -> Dataset:
    draft = Draft.begin(Folder.at(home), home.name, tables[0].schema, lineage)
    for number, table in enumerate(tables):
        kept, captions = Account.all_kept(table.num_rows), None
        if home.name == "pairs":
            captions = Account(2 * table.num_rows, table.num_rows, {"rejected:empty": len(table)})
        commit_table(
            draft.folder, number, table, draft.rows_per_batch, pictures=kept, captions=captions
        )
    return draft.publish(draft.committed().values())


def make_raw(home: Path) -> Dataset:
    rows = [pair(url) | {"captions": []} for url in (*URLS, COPY)]
    lines = [{"uid": r["uid"], "url": r["url"], "captions": ["x"], "outcome": "kept"} for r in rows]
    lines.append({"uid": uid_of_url(LOST), "url": LOST, "captions": ["y"], "outcome": "failed:dns"})
    draft = Draft.begin(Folder.at(home), "raw", RAW, Lineage("test", {}))
    with new_shard(draft.folder, 0) as shard:
        shard.open(RAW, 64).write(pa.Table.from_pylist(rows, RAW))
        shard.open(LEDGER, 64, attachment="ledger").write(pa.Table.from_pylist(lines, LEDGER))
        account = Account(len(lines), len(rows), {"failed:dns": 1})
        shard.commit(pictures=account, captions=Account(0, 0))
    return draft.publish(draft.committed().values())


def make_plan(home: Path) -> None:
    rows = [
        {"uid": uid_of_url(url), "output_shard": place // 8, "output_row": place % 8}
        for place, url in [*enumerate(URLS), (5, COPY)]
    ]
    draft = Draft.begin(Folder.at(home), "plan", PLAN, Lineage("test", {}))
    table = pa.Table.from_pylist(rows, PLAN)
    commit_table(draft.folder, 0, table, 64, pictures=Account.all_kept(len(rows)))
    draft.publish(draft.committed().values())


def training(home: Path, digest: str, lineage: Lineage) -> None:
    home.mkdir()
    content = {"digest": digest, "lineage": lineage.to_json()}
    (home / "checkpoint.json").write_text(json.dumps(content))


@pytest.fixture
def run(tmp_path):
    """All that a run makes, in two shards of 8 and 4 pictures; the folder that holds it."""
    home = tmp_path / "run"
    home.mkdir()
    raw = make_raw(home / "raw")
    rows = [pair(url) for url in URLS]
    parts = [rows[:8], rows[8:]]
    lineage = Lineage("curate", {}, (raw.as_parent,))
    pairs = publish(home / "pairs", [pa.Table.from_pylist(r, PAIRS) for r in parts], lineage)
    make_plan(home / "pairs" / ".work" / "plan")
    tokens, vectors = [], []
    for part in parts:
        uids, here = [row["uid"] for row in part], [True] * len(part)
        values = np.stack([np.frombuffer(uid * 4, np.uint8)[: P * C] for uid in uids]) + 1.0
        values = values.reshape(-1, P, C).astype(np.float32)
        columns = {"uid": uids, **token_columns(values, here, uids, "fp16")}
        tokens.append(pa.table(columns, schema=features_schema(P, C, "fp16")))
        unit = values / np.linalg.norm(values, axis=2, keepdims=True)
        vectors.append(image_rows(uids, unit, here))
    lineage = Lineage("features", {}, (pairs.as_parent,))
    features = publish(home / "features", tokens, lineage)
    frozen = {"checkpoint": {"digest": "c" * 64, "stage": 1}}
    embedded = Lineage("embed", {}, (features.as_parent,), frozen)
    images = publish(home / "embeddings" / "image_embeddings", vectors, embedded)
    sources = Sources(pairs, images, None, "all")
    begin(Folder.at(home / "index"), sources.lineage)
    build_index(Folder.at(home / "index"), sources, lambda count: None)
    training(home / "stage1", "c" * 64, Lineage("train", {}, (features.as_parent,)))
    stage2 = Lineage("train", {}, (), {"stage1": {"digest": "c" * 64}})
    training(home / "stage2", "d" * 64, stage2)
    tuned = Lineage("train", {}, (), {"init": {"digest": "c" * 64}})
    training(home / "captioner", "f" * 64, tuned)
    training(home / "other", "e" * 64, Lineage("train", {}, (), {"encoder": {"name": "x"}}))
    return home


@pytest.fixture
def takedown(run, tmp_path, capsys):
    """Takes entries down in the run; returns the report."""

    def takedown(*entries: str, options=()) -> dict:
        (tmp_path / "list.txt").write_text("\n".join(entries) + "\n\n")
        capsys.readouterr()
        command = ["takedown", tmp_path / "list.txt", "--in", run, "--json", *options]
        assert main([str(word) for word in command]) == 0
        return json.loads(capsys.readouterr().out)

    return takedown


DATASETS = ("raw", "pairs", "features", "embeddings/image_embeddings")


def bytes_of(run: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(run.rglob("*.arrow")))


def files_of(run: Path) -> dict[str, bytes]:
    files = (path for path in run.rglob("*") if path.is_file() and ".lock" not in path.name)
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(files)}


def test_tombstones_are_set_wherever_the_picture_is_and_everything_that_saw_it_is_named(
    run, takedown
):
    before = {name: Dataset.open(str(run / name)).digest for name in DATASETS}
    uid = uid_of_url(URLS[9])
    report = takedown(uid.hex().upper(), "http://nobody.example/a.jpg", LOST)
    assert report["taken_down"] == 2
    counts = {
        str(Path(folder).relative_to(run)): n
        for folder, n in report["datasets_and_indexes"].items()
    }
    assert counts == dict.fromkeys((*DATASETS, "index"), 1) | {"raw": 2}
    assert report["unmatched"] == ["http://nobody.example/a.jpg"]
    assert report["indexes_with_them"] == [str(run / "index")]
    saw = [str(run / name) for name in ("stage1", "captioner", "stage2")]
    assert report["checkpoints_that_saw_them"] == saw
    for name in DATASETS:
        dataset = Dataset.open(str(run / name))
        assert uid in dataset.tombstones
        assert dataset.digest == before[name]
    assert read_tombstones(Folder.at(run / "index")) == {uid}


@pytest.mark.parametrize("options", [(), ("--erase",)])
def test_training_and_search_pass_over_what_was_taken_down(run, takedown, options):
    def seen() -> tuple[list[str], list[str]]:
        pairs, features = (Dataset.open(str(run / name)) for name in ("pairs", "features"))
        loaded = Pairs(features, pairs, "train")
        batch = loaded.batch(np.arange(len(loaded)), np.zeros(len(loaded)))
        assert bool((batch.tokens != 0).all())
        index = RetrievalIndex.open(str(run / "index"))
        query = np.full((1, E), 0.5, np.float32)
        found = [hit.url for hit in index.search_texts(query, NUM)[0]]
        return [text.removeprefix("words of ") for text in batch.texts], sorted(found)

    assert seen() == (URLS, URLS)
    takedown(URLS[2], URLS[11], options=options)
    left = [url for url in URLS if url not in (URLS[2], URLS[11])]
    assert seen() == (left, left)


def test_copies_that_curate_united_go_too(run, takedown):
    report = takedown(COPY)
    assert report["copies"] == [uid_of_url(URLS[5]).hex()]
    assert report["datasets_and_indexes"][str(run / "raw")] == 2
    assert Dataset.open(str(run / "pairs")).tombstones == {uid_of_url(URLS[5])}


def test_erasing_leaves_rows_uids_and_digests_and_nothing_else(run, takedown):
    before = {name: Dataset.open(str(run / name)) for name in DATASETS}
    tables = {name: list(dataset.shards()) for name, dataset in before.items()}
    expected = {
        name: [
            [
                {key: row[key] if key == "uid" or row["uid"] != uid_of_url(URLS[3]) else None
                 for key in row}
                for row in shard.table.to_pylist()
            ]
            for shard in shards
        ]
        for name, shards in tables.items()
    }  # fmt: skip
    assert URLS[3].encode() in bytes_of(run)
    report = takedown(URLS[3], options=["--erase"])
    assert set(report["erased_rows"].values()) == {1}
    for name in DATASETS:
        after = Dataset.open(str(run / name))
        assert [shard.table.to_pylist() for shard in after.shards()] == expected[name]
        assert after.digest == before[name].digest
        assert list(verify(after)) == []
        assert after.records[0].erased.rows == (3,)
        assert after.records[0].entry.made[1] == before[name].records[0].entry.digest
    check_side_by_side(*(Dataset.open(str(run / name)) for name in DATASETS[1:]))
    datasets = b"".join(bytes_of(run / name) for name in DATASETS)
    assert URLS[3].encode() not in datasets  # url, picture, caption; in the ledger too
    assert URLS[4].encode() in datasets
    token = np.frombuffer(uid_of_url(URLS[3]), np.uint8)[: P * C] + np.float16(1)
    assert token.astype(np.float16).tobytes() not in bytes_of(run / "features")
    ledger = Dataset.open(str(run / "raw")).attachment(0, "ledger").to_pylist()[3]
    assert ledger["uid"] == uid_of_url(URLS[3])
    assert (ledger["url"], ledger["captions"], ledger["outcome"]) == (None, None, "kept")


def test_taking_down_again_changes_nothing_and_erasing_may_come_later(run, takedown):
    takedown(URLS[1])
    once = files_of(run)
    takedown(URLS[1])
    assert files_of(run) == once
    takedown(URLS[1], options=["--erase"])
    erased = files_of(run)
    assert erased.keys() != once.keys()
    assert set(takedown(URLS[1], options=["--erase"])["erased_rows"].values()) == {0}
    assert files_of(run) == erased
    takedown(URLS[2], options=["--erase"])
    pairs = Dataset.open(str(run / "pairs"))
    assert pairs.records[0].erased.rows == (1, 2)
    assert pairs.records[0].erased.captions == {"kept": 2, "rejected:empty": 2}
    assert list(verify(pairs)) == []


def test_what_was_written_of_a_picture_goes_with_it(run, takedown):
    pairs = Dataset.open(str(run / "pairs"))
    tables = []
    for shard in pairs.shards():
        rows = shard.table.to_pylist()
        texts = [[f"written of {row['url']}"] for row in rows]
        competing = candidates_of([row["captions"] for row in rows], texts, ())
        scored = [with_scores(its, "clip:a", [(0.5, None), (0.75, None)]) for its in competing]
        tables.append(candidate_rows([row["uid"] for row in rows], scored, ["train"] * len(rows)))
    draft = Draft.begin(Folder.at(run / "candidates"), "candidates", CANDIDATES, Lineage("t", {}))
    for number, table in enumerate(tables):
        accounts = {"pictures": Account.all_kept(len(table)), "captions": caption_account(table)}
        commit_table(draft.folder, number, table, draft.rows_per_batch, **accounts)
    draft.publish(draft.committed().values())

    command = ["select-captions", str(run / "candidates"), "--top-k", "1", "--out"]
    assert main([*command, str(run / "captions")]) == 0
    takedown(URLS[3])
    assert main([*command, str(run / "later")]) == 0  # the row has no captions any more
    report = takedown(URLS[3], URLS[10], options=["--erase"])
    names = ("candidates", "captions", "later")
    assert [report["erased_rows"][str(run / name)] for name in names] == [2, 2, 2]
    for name in names:
        dataset = Dataset.open(str(run / name))
        check_side_by_side(dataset, pairs)
        assert list(verify(dataset)) == []
        rows = [row for shard in dataset.shards() for row in shard.table.to_pylist()]
        gone = [row["captions"] is None and row["split"] is None for row in rows]
        assert [number for number, its in enumerate(gone) if its] == [3, 10]
        assert f"written of {URLS[3]}".encode() not in bytes_of(run / name)
        assert f"written of {URLS[4]}".encode() in bytes_of(run / name)
    assert Dataset.open(str(run / "later")).records[0].erased.captions == {}
    one = {"kept": 1, "rejected:empty": 1, "rejected:not_best": 1}
    assert Dataset.open(str(run / "captions")).records[0].erased.captions == one


class Killed(BaseException):
    pass


@pytest.mark.parametrize("lives", range(0, 27, 4))
def test_killed_at_any_moment_and_begun_again_it_ends_as_if_unbroken(
    run, takedown, tmp_path, monkeypatch, lives
):
    shutil.copytree(run, tmp_path / "spare")
    takedown(URLS[0], COPY, options=["--erase"])
    unbroken = files_of(run)
    shutil.rmtree(run)
    shutil.copytree(tmp_path / "spare", run)
    steps = iter(range(lives))

    def dying(method):
        def call(*arguments, **options):
            if next(steps, None) is None:
                raise Killed
            return method(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("publish_json", "remove_file"):
            patch.setattr(Folder, name, dying(getattr(Folder, name)))
        patch.setattr(
            "pipeline.erasure._write", dying(__import__("pipeline.erasure").erasure._write)
        )
        try:
            takedown(URLS[0], COPY, options=["--erase"])
        except Killed:
            for name in DATASETS:  # at any moment it can be read
                assert sum(shard.table.num_rows for shard in Dataset.open(str(run / name)).shards())
    takedown(URLS[0], COPY, options=["--erase"])
    assert files_of(run) == unbroken


def test_verification_finds_what_an_erasure_left(run, takedown):
    takedown(URLS[3], options=["--erase"])
    for name, place in (("dataset.json", "shards"), ("00000.json", None)):
        value = json.loads((run / "pairs" / name).read_text())
        (value[place][0] if place else value)["erased"]["rows"] = [3, 4]
        (run / "pairs" / name).write_text(json.dumps(value))
    wrong = list(verify(Dataset.open(str(run / "pairs"))))
    assert len(wrong) == 1
    assert "rows that were erased still have url, picture" in wrong[0]


def test_unfinished_datasets_are_named(run, takedown):
    Draft.begin(Folder.at(run / "more"), "pairs", PAIRS, Lineage("test", {}))
    assert takedown(URLS[0])["unfinished"] == [str(run / "more")]


def test_pictures_that_were_added_to_an_index_go_by_it(run, takedown):
    more = [f"http://example.org/more-{row}.jpg" for row in range(4)]
    rows = [pair(url) for url in more]
    pairs = publish(run / "more" / "pairs", [pa.Table.from_pylist(rows, PAIRS)], Lineage("t", {}))
    vectors = np.full((4, Q, E), 0.5, np.float32)
    frozen = {"checkpoint": {"digest": "c" * 64, "stage": 1}}
    images = publish(
        run / "more" / "image_embeddings",
        [image_rows([row["uid"] for row in rows], vectors, [True] * 4)],
        Lineage("embed", {}, (), frozen),
    )
    index = Folder.at(run / "index")
    addition = next_addition(index, Sources(pairs, images, None, "all"))
    begin(addition.folder, addition.sources.lineage)
    assert takedown(more[0])["unfinished"] == [str(run / "index" / "added-00001")]
    again = Sources(Dataset.open(pairs.folder), images, None, "all")
    addition = next_addition(index, again)  # it goes on by the same command
    build_index(addition.folder, addition.sources, lambda count: None)
    publish_addition(index, addition.folder)
    report = takedown(more[1], URLS[3])
    assert report["datasets_and_indexes"][str(run / "index")] == 2
    assert report["unfinished"] == []
    assert read_tombstones(index) == {uid_of_url(url) for url in (more[1], URLS[3])}
    assert not (run / "index" / "added-00001" / "tombstones.json").exists()
    (found,) = RetrievalIndex.open(index).search_texts(vectors[0, :1], 99)
    left = {*URLS, *more[2:]} - {URLS[3]}
    assert {one.url for one in found} == left


def test_wrong_input_is_one_line(run, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "list.txt").write_text("a\n")
    (tmp_path / "nothing").mkdir()
    for words, message in (
        ([tmp_path / "missing.txt", "--in", run], "missing.txt: no such file"),
        ([tmp_path / "empty.txt", "--in", run], "names nothing to take down"),
        ([tmp_path / "list.txt", "--in", tmp_path / "nothing"], "no dataset, index or training"),
    ):
        assert main(["takedown", *map(str, words)]) == 2
        assert message in capsys.readouterr().err


def test_the_text_for_people_says_what_the_json_says(run, tmp_path, capsys):
    (tmp_path / "list.txt").write_text(f"{COPY}\nnobody\n")
    capsys.readouterr()
    assert main(["takedown", str(tmp_path / "list.txt"), "--in", str(run), "--erase"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 pictures are down, 1 of them as copies"
    assert f"  {run / 'pairs'}: 1, 1 rows erased now" in lines
    assert f"{run / 'stage1'}: saw them in training" in lines
    assert "nobody: matches nothing" in lines
