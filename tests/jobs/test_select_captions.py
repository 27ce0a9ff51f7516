"""Captions are chosen in seconds, again and again, and read wherever captions are read."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs import select_captions
from jobs.cli import main
from model.checkpoint import Checkpoint
from pipeline.accounting import Account
from pipeline.candidates import (
    candidate_rows,
    candidates_of,
    caption_account,
    texts_to_score,
    unscored,
    with_scores,
)
from pipeline.dataset import Dataset, check_side_by_side
from pipeline.draft import Draft
from pipeline.lineage import Lineage
from pipeline.loader import Pairs
from pipeline.schemas import CANDIDATES
from pipeline.shard import commit_table
from pipeline.storage import Folder
from pipeline.verify import verify

JUDGE = "stage1:0123456789ab"


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def candidates(tmp_path_factory, data) -> Path:
    """Two captions written of each training picture; web captions score low where they are odd.

    Written ones have a match probability of 0.5 and 0.75, the web's of 1 or, of every third
    picture, 0. Who judged by similarity alone thinks the contrary.
    """
    home = tmp_path_factory.mktemp("candidates") / "candidates"
    pairs = Dataset.open(str(data / "pairs"))
    lineage = Lineage("capfilt", {}, (pairs.as_parent,))
    draft = Draft.begin(Folder.at(home), "candidates", CANDIDATES, lineage)
    for number in pairs.records:
        rows = pairs.shard(number).table.to_pylist()
        captions = []
        for row in rows:
            at = int.from_bytes(row["uid"], "big")
            if row["split"] != "train":
                captions.append(unscored(row["captions"]))
                continue
            written = [f"picture {at % 7} of number", f"number {at % 50} of picture"]
            [its] = candidates_of([row["captions"]], [written], ())
            num_web = len(texts_to_score(its)) - 2
            match = [0.0 if at % 3 == 0 else 1.0] * num_web + [0.5, 0.75]
            its = with_scores(its, JUDGE, [(0.25, value) for value in match])
            captions.append(with_scores(its, "clip:a", [(-value, None) for value in match]))
        uids, splits = [row["uid"] for row in rows], [row["split"] for row in rows]
        table = candidate_rows(uids, captions, splits)
        accounts = {"pictures": Account.all_kept(len(rows)), "captions": caption_account(table)}
        commit_table(draft.folder, number, table, draft.rows_per_batch, **accounts)
    draft.publish(draft.committed().values())
    return home


def rows_of(home: Path) -> list[dict]:
    shards = Dataset.open(str(home)).shards()
    return [row for shard in shards for row in shard.table.to_pylist()]


def kept(row: dict) -> list[str]:
    return [caption["text"] for caption in row["captions"] if caption["status"] == "kept"]


@pytest.fixture(scope="module")
def captions(tmp_path_factory, candidates) -> Path:
    """The best two of each picture, by match probability."""
    out = tmp_path_factory.mktemp("captions") / "captions"
    run("select-captions", candidates, "--judge", JUDGE, "--out", out)
    return out


def test_the_dataset_lies_beside_pairs_and_says_how_it_was_made(captions, candidates, data):
    made, source = Dataset.open(str(captions)), Dataset.open(str(candidates))
    check_side_by_side(made, Dataset.open(str(data / "pairs")))
    assert list(verify(made)) == []
    assert made.kind == "captions"
    lineage = made.manifest.lineage
    assert (lineage.job, lineage.parents) == ("select-captions", (source.as_parent,))
    assert lineage.config == {
        "judge": JUDGE,
        "by": "itm",
        "top_k": 2,
        "web_threshold": None,
        "synthetic_threshold": None,
        "synthetic_share": None,
    }
    assert made.manifest.captions.num_in == source.manifest.captions.num_in
    for after, before in zip(rows_of(captions), rows_of(candidates), strict=True):
        odd = int.from_bytes(after["uid"], "big") % 3 == 0
        web = [c["text"] for c in before["captions"] if c["source"] == "web" and c["text"]]
        written = [c["text"] for c in before["captions"] if c["source"] == "synthetic"]
        if after["split"] == "train":
            ranked = written[::-1] if odd else [*web, *written[::-1]]
            assert sorted(kept(after)) == sorted(ranked[:2])
        else:
            assert after == before


def test_what_became_of_them_is_printed_and_kept(captions, candidates, capsys):
    train = [row for row in rows_of(captions) if row["split"] == "train"]
    num_web = num_kept = num_replaced = 0
    for row in train:
        web = [c for c in row["captions"] if c["source"] == "web" and c["text"]]
        its = sum(c["status"] == "kept" for c in web)
        num_web, num_kept = num_web + len(web), num_kept + its
        num_replaced += len(web) - its if set(kept(row)) - {c["text"] for c in web} else 0
    assert 0 < num_replaced < num_web
    summary = json.loads((captions / "summary.json").read_text())
    assert (summary["judged"], summary["web"], summary["web_kept"], summary["web_replaced"]) == (
        *(len(train), num_web, num_kept, num_replaced),
    )
    assert summary["replaced_share"] == pytest.approx(num_replaced / num_web, abs=1e-6)
    (captions / "summary.json").write_text(json.dumps({"web": 3}))  # it is made anew
    capsys.readouterr()
    run("select-captions", candidates, "--judge", JUDGE, "--out", captions)  # once more
    assert json.loads((captions / "summary.json").read_text()) == summary
    said = capsys.readouterr().out
    assert f"{num_web:,} on offer, {num_kept:,} kept, {num_replaced:,} replaced" in said
    assert "distinct-2" in said


def test_a_judge_a_threshold_and_a_budget_choose_otherwise(candidates, tmp_path, refused):
    assert "judge: name one of clip:a, stage1:0123456789ab" in refused(
        "select-captions", candidates, "--out", tmp_path / "none"
    )
    run(
        *("select-captions", candidates, "--judge", "clip:a", "--top-k", "None"),
        *("--web-threshold", -0.5, "--synthetic-threshold", -0.6, "--out", tmp_path / "clip"),
    )
    for row in rows_of(tmp_path / "clip"):
        if row["split"] == "train":
            odd = int.from_bytes(row["uid"], "big") % 3 == 0
            web = [c["text"] for c in row["captions"] if c["source"] == "web" and c["text"]]
            [first, _] = [c["text"] for c in row["captions"] if c["source"] == "synthetic"]
            assert kept(row) == ([*web, first] if odd else [first])
    command = ["select-captions", candidates, "--judge", JUDGE, "--out", tmp_path / "share"]
    run(*command, "--synthetic-share", 0.3)
    summary = json.loads((tmp_path / "share" / "summary.json").read_text())
    num_web, num_written = summary["web_kept"], summary["synthetic_kept"]
    assert 0 < num_written <= 0.3 * (num_web + num_written)
    over = [c for row in rows_of(tmp_path / "share") for c in row["captions"]]
    assert any(c["status"] == "rejected:over_budget" for c in over)
    assert summary["without_caption"] == summary["without_web_caption"] > 0
    assert "config.synthetic_share: 0.3 there, 0.4 now" in refused(
        *command, "--synthetic-share", 0.4
    )
    assert list(verify(Dataset.open(str(tmp_path / "share")))) == []


def test_a_selection_that_was_stopped_goes_on_and_ends_alike(
    captions, candidates, tmp_path, monkeypatch
):
    out = tmp_path / "captions"
    command = ["select-captions", candidates, "--judge", JUDGE, "--out", out]
    commit, left = select_captions.commit_table, iter(range(2))

    def dying(*arguments, **options):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return commit(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(select_captions, "commit_table", dying)
        assert main([str(word) for word in command]) == 130
    assert not (out / "dataset.json").exists()
    before = (out / "00000.arrow").stat().st_mtime_ns
    run(*command)
    assert (out / "00000.arrow").stat().st_mtime_ns == before
    assert Dataset.open(str(out)).digest == Dataset.open(str(captions)).digest
    assert (out / "summary.json").read_bytes() == (captions / "summary.json").read_bytes()


def test_a_training_draws_from_what_was_chosen_and_says_so(
    captions, data, tmp_path, stage1_command, rank_here
):
    command = stage1_command(tmp_path / "stage1")
    command[command.index("--captions") + 1] = captions
    with rank_here():
        run(*command)
    made, features = Dataset.open(str(captions)), Dataset.open(str(data / "features"))
    parents = Checkpoint.open(str(tmp_path / "stage1")).lineage.parents
    assert parents == (features.as_parent, made.as_parent)
    pairs = Pairs(features, made, "train")
    numbers = np.arange(len(pairs))
    drawn = [pairs.batch(numbers, np.full(len(pairs), share)).texts for share in (0.0, 0.99)]
    expected = [kept(row) for row in rows_of(captions) if row["split"] == "train" and kept(row)]
    assert drawn == [[its[0] for its in expected], [its[-1] for its in expected]]


@pytest.mark.slow
def test_embed_evaluate_index_and_search_take_what_was_chosen(
    captions, data, tmp_path, unbroken, capsys, refused
):
    both = ("--features", data / "features", "--captions", captions)
    run("embed", "--checkpoint", unbroken, *both, "--out", tmp_path / "embeddings")
    of_texts = Dataset.open(str(tmp_path / "embeddings" / "text_embeddings"))
    assert of_texts.manifest.lineage.parents == (Dataset.open(str(captions)).as_parent,)
    run(
        *("evaluate", tmp_path / "embeddings", "--checkpoint", unbroken, *both),
        *("--control", "none", "--out", tmp_path / "result.json"),
    )
    test = [kept(row) for row in rows_of(captions) if row["split"] == "test"]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["num_captions"] == sum(map(len, test))

    index = ["index", tmp_path / "embeddings", "--pairs", data / "pairs", "--checkpoint", unbroken]
    said = refused(*index, "--out", tmp_path / "wrong")
    assert "other captions were embedded than it has; --captions names" in said
    run(*index, "--captions", captions, "--out", tmp_path / "index")
    capsys.readouterr()
    run("search", tmp_path / "index", "picture number 3", "--json", "--k", 5)
    found = json.loads(capsys.readouterr().out)["searches"][0]["results"]
    told = {row["uid"].hex(): kept(row) for row in rows_of(captions)}
    urls = {row["uid"].hex(): row["url"] for row in rows_of(data / "pairs")}
    assert [(one["captions"], one["url"]) for one in found] == [
        (told[one["uid"]], urls[one["uid"]]) for one in found
    ]
    assert any("of" in text for one in found for text in one["captions"])


def test_candidates_are_refused_until_some_are_chosen(
    candidates, data, tmp_path, stage1_command, unbroken, refused
):
    command = stage1_command(tmp_path / "stage1")
    command[command.index("--captions") + 1] = candidates
    said = f"holds 'candidates', of which none is chosen yet; `viaduct select-captions {candidates}"
    assert said in refused(*command)
    embed = ("embed", "--checkpoint", unbroken, "--out", tmp_path / "embeddings")
    assert said in refused(*embed, "--captions", candidates)
    assert "holds 'features', but 'pairs' or 'captions' is needed" in refused(
        *command[: command.index("--captions") + 1], data / "features", "--out", tmp_path / "out"
    )
    assert "holds 'pairs', but 'candidates' is needed" in refused(
        "select-captions", data / "pairs", "--out", tmp_path / "out"
    )


def test_inspect_shows_captions_and_writes_them_out(captions, data, tmp_path, capsys, refused):
    file = tmp_path / "captions.parquet"
    capsys.readouterr()
    run("inspect", captions, "--verify", "--beside", data / "pairs", "--export", file)
    told = rows_of(captions)
    total = sum(len(row["captions"]) for row in told)
    said = capsys.readouterr().out
    assert "rejected:not_best" in said
    assert f"{total:,} captions written to {file}" in said
    table = pq.read_table(file).to_pylist()
    assert [row["text"] for row in table] == [c["text"] for row in told for c in row["captions"]]
    urls = [row["url"] for row in rows_of(data / "pairs")]
    both = zip(urls, told, strict=True)
    assert [row["url"] for row in table] == [url for url, row in both for _ in row["captions"]]
    assert {f"itm {JUDGE}", "itc clip:a", "itm clip:a"} < table[0].keys()
    held_out = ("inspect", captions, "--split", "test", "--export", file)
    run(*held_out)
    assert {row["split"] for row in pq.read_table(file).to_pylist()} == {"test"}
    (tmp_path / "file").write_text("")
    said = refused(*held_out[:-1], tmp_path / "file" / "captions.parquet")
    assert f"{tmp_path / 'file'}: cannot be written" in said
