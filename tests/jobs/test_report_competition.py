"""The report of captions that competed: true to the dataset, and of its pictures."""

import html
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from jobs.cli import main
from jobs.report.competition import Competition, read_competitions
from jobs.report.contents import read_run
from jobs.report.page import competition_rules, lineage_rows
from jobs.report.plots import score_plots
from pipeline.accounting import Account
from pipeline.candidates import (
    candidate_rows,
    candidates_of,
    caption_account,
    texts_to_score,
    unscored,
    with_scores,
)
from pipeline.dataset import Dataset
from pipeline.draft import Draft
from pipeline.lineage import Lineage
from pipeline.schemas import CANDIDATES
from pipeline.selected import SUMMARY, summary_of
from pipeline.shard import commit_table
from pipeline.storage import Folder

JUDGE = "stage1:0123456789ab"
DIGEST = JUDGE.removeprefix("stage1:") + "0" * 52
HOSTILE = "<script>alert(1)</script> &amp; a boat"


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory, data) -> Path:
    """`pairs`, `candidates` by a captioner that judges itself, and `captions` chosen of them.

    Captions of the web have a match probability of 0.9, of every third picture 0.1; what was
    written 0.3 and 0.7, and a third time the second of these.
    """
    home = tmp_path_factory.mktemp("competition")
    shutil.copytree(data / "pairs", home / "pairs")
    pairs = Dataset.open(str(home / "pairs"))
    generation = {"method": "nucleus", "num_captions": 3, "top_p": 0.9, "num_beams": 3}
    frozen = {
        "captioner": {"digest": DIGEST, "stage": 1},
        "judges": [{"name": JUDGE, "digest": DIGEST, "is_captioner": True}],
    }
    config = {"generation": generation, "limit": 50}
    lineage = Lineage("capfilt", config, (pairs.as_parent,), frozen)
    draft = Draft.begin(Folder.at(home / "candidates"), "candidates", CANDIDATES, lineage)
    for shard in pairs.shards():
        rows = shard.table.to_pylist()
        captions = [competing(row) for row in rows]
        table = candidate_rows([r["uid"] for r in rows], captions, [r["split"] for r in rows])
        accounts = {"pictures": Account.all_kept(len(rows)), "captions": caption_account(table)}
        number = shard.record.number
        commit_table(draft.folder, number, table, draft.rows_per_batch, **accounts)
    draft.publish(draft.committed().values())
    thresholds = ("--web-threshold", 0.5, "--synthetic-threshold", 0.5, "--top-k", 6)
    run("select-captions", home / "candidates", "--out", home / "captions", *thresholds)
    return home


def competing(row: dict) -> list[dict]:
    if row["split"] != "train":
        return unscored(row["captions"])
    name = row["uid"].hex()[:6]
    [its] = candidates_of([row["captions"]], [[HOSTILE, f"it is {name}", f"It is {name}"]], ())
    match = [0.1 if is_odd(row) else 0.9] * (len(texts_to_score(its)) - 2) + [0.3, 0.7]
    return with_scores(its, JUDGE, [(value / 2, value) for value in match])


def is_odd(row: dict) -> bool:
    return row["uid"][-1] % 3 == 0


def judged(home: Path) -> list[dict]:
    shards = Dataset.open(str(home / "captions")).shards()
    rows = [row for shard in shards for row in shard.table.to_pylist()]
    return [row for row in rows if row["split"] == "train"]


def competitions(home: Path, limit: int = 40) -> list[Competition]:
    return read_competitions(read_run(Folder.at(str(home))), limit)


def test_every_score_is_counted_by_its_source(made):
    [one] = competitions(made)
    captions = [c for row in judged(made) for c in row["captions"] if c["scores"]]
    for source in ("web", "synthetic"):
        scores = [c["scores"][0] for c in captions if c["source"] == source]
        for measure, edges in (("itm", np.arange(26) / 25), ("itc", np.arange(-50, 51) / 50)):
            expected = np.histogram([score[measure] for score in scores], edges)[0]
            assert one.counts[measure][source].tolist() == expected.tolist()
    assert one.num_judged == len(judged(made))


def test_a_picture_shows_all_that_competed_for_it_and_what_was_kept(made):
    [one] = competitions(made, limit=1000)
    rows = {tuple(c["text"] for c in row["captions"]): row for row in judged(made)}
    assert len(one.contests) == len(judged(made)) > 20
    for contest in one.contests:
        both = [*contest.web, *contest.written]
        row = rows[tuple(c.text for c in both)]
        assert [c.status for c in both] == [c["status"] for c in row["captions"]]
        assert contest.picture.startswith("data:image/jpeg;base64,")
        assert [c.is_kept for c in contest.written] == [False, True, False]
        assert [c.status for c in contest.written][::2] == [
            *("rejected:below_threshold", "rejected:duplicate"),
        ]
        assert [c.scores.get("itm") for c in contest.written] == pytest.approx([0.3, 0.7, None])
        assert all(c.is_kept != is_odd(row) for c in contest.web if c.text)
    best = [max((c.scores["itm"] for c in its.web if c.scores), default=-1) for its in one.contests]
    assert best == sorted(best)
    assert {round(value, 3) for value in best} == {-1, 0.1, 0.9}


def test_few_pictures_are_spread_over_all(made):
    [one] = competitions(made, limit=3)
    names = [row["uid"].hex()[:6] for row in judged(made)]
    middle = round((len(names) - 1) / 2)
    expected = {f"it is {names[at]}" for at in (0, middle, len(names) - 1)}
    assert {contest.written[1].text for contest in one.contests} == expected


def test_the_page_says_what_was_replaced_and_how_diverse_it_is(made, tmp_path):
    run("report", made, "--out", tmp_path / "page.html", "--max-pairs", 7)
    page = (tmp_path / "page.html").read_text()
    summary = json.loads((made / "captions" / "summary.json").read_text())
    text = re.sub(r"<style.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)
    text = " ".join(html.unescape(text).split())
    assert f"{100 * summary['replaced_share']:.1f}% of the web's captions on offer" in text
    total, bare = summary["pictures"], summary["without_caption"]
    assert f"Of all {total} pictures {bare} are left without a caption" in text
    for source, label in (("web", "from the web"), ("synthetic", "written by a model")):
        its = summary["diversity"][source]
        told = f"{label} {summary[source]} {summary[f'{source}_kept']} {its['mean_words']:.1f} "
        assert told + f"{its['distinct_1']:.3f} {its['distinct_2']:.3f}" in text
    assert "3 captions a picture were written by nucleus sampling, p = 0.9." in text
    assert "such a judge forgives what it wrote itself" in text
    assert "Of the web's only what scores 0.5 or more." in text
    assert page.count('class="contenders"') == page.count("From the web") + page.count(
        "Written by a model"
    )
    assert page.count("<article") == 7
    assert 'href="#competition"' in page
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp;amp; a boat" in page
    assert 'aria-label="Scores by match probability.' in page
    assert "> threshold <" in page  # one for both


def test_the_page_names_who_trained_on_what_was_kept(made, tmp_path):
    assert competition_rules(*competitions(made))[-1] == "Nothing in this run was trained on it."
    shutil.copytree(made, tmp_path / "run")
    parent = Dataset.open(str(made / "captions")).as_parent.to_json()
    lineage = {"job": "train-stage1", "config": {}, "parents": [parent], "frozen": {}}
    checkpoint = {"stage": 1, "step": 9, "digest": "1" * 64, "lineage": lineage}
    (tmp_path / "run" / "round-2").mkdir()
    (tmp_path / "run" / "round-2" / "checkpoint.json").write_text(json.dumps(checkpoint))
    rules = competition_rules(*competitions(tmp_path / "run"))
    assert rules[-1] == "Trained on what was kept: round-2."


def test_candidates_that_nothing_was_chosen_of_are_shown_as_such(made, tmp_path):
    for name in ("pairs", "candidates"):
        shutil.copytree(made / name, tmp_path / "run" / name)
    [one] = competitions(tmp_path / "run")
    assert (one.name, one.judge, one.by, one.outcome) == ("candidates", JUDGE, "itm", None)
    assert competition_rules(one)[-1] == "None is chosen yet."
    assert all(c.is_kept for contest in one.contests for c in contest.written[:2])
    page = tmp_path / "run" / "report.html"
    run("report", tmp_path / "run")
    assert "Distinct-1" not in page.read_text()
    home = Folder.at(tmp_path / "run" / "candidates")
    home.publish_json(SUMMARY, summary_of(Dataset.open(home)))  # as capfilt does
    run("report", tmp_path / "run")
    text = re.sub(r"<[^>]*>", " ", page.read_text())
    [[offered, words]] = re.findall(r"written by a model\s+(\d+)\s+(\d+\.\d)\s", text)
    assert (int(offered), words) == (2 * one.num_judged, "3.5")  # of four and three
    assert "Kept" not in text.split("Distinct-1")[0].rsplit("On offer", 1)[1]
    assert "were replaced" not in text


def test_captions_that_another_job_chose_are_shown_without_its_rules(made, tmp_path):
    shutil.copytree(made / "pairs", tmp_path / "pairs")
    source = Dataset.open(str(made / "candidates"))
    lineage = Lineage("own-choice", {"share": 3}, (source.as_parent,))
    draft = Draft.begin(Folder.at(tmp_path / "mine"), "captions", CANDIDATES, lineage)
    for number, shard in zip(source.records, source.shards(), strict=True):
        accounts = {
            "pictures": Account.all_kept(len(shard.table)),
            "captions": caption_account(shard.table),
        }
        commit_table(draft.folder, number, shard.table, draft.rows_per_batch, **accounts)
    draft.publish(draft.committed().values())
    [one] = competitions(tmp_path)
    assert competition_rules(one)[1:] == [
        "They were chosen by own-choice.",
        "Nothing in this run was trained on it.",
    ]
    run("report", tmp_path)


def test_judges_whose_scores_are_not_shown_are_named(made, tmp_path):
    shutil.copytree(made / "pairs", tmp_path / "pairs")
    source = Dataset.open(str(made / "candidates"))
    draft = Draft.begin(
        Folder.at(tmp_path / "both"), "candidates", CANDIDATES, source.manifest.lineage
    )
    for number, shard in zip(source.records, source.shards(), strict=True):
        rows = shard.table.to_pylist()
        captions = [
            with_scores(its, "clip:b", [(0.0, None)] * len(texts_to_score(its)))
            if any(caption["scores"] for caption in its)
            else its
            for its in (row["captions"] for row in rows)
        ]
        table = candidate_rows([r["uid"] for r in rows], captions, [r["split"] for r in rows])
        accounts = {"pictures": Account.all_kept(len(rows)), "captions": caption_account(table)}
        commit_table(draft.folder, number, table, draft.rows_per_batch, **accounts)
    draft.publish(draft.committed().values())
    [one] = competitions(tmp_path)
    assert (one.judge, one.judges) == ("clip:b", ("clip:b", JUDGE))
    assert f"The scores by {JUDGE} are not shown here." in competition_rules(one)
    [alone] = competitions(made)
    assert not any("not shown" in rule for rule in competition_rules(alone))


def test_alone_captions_have_no_pictures(made, tmp_path):
    shutil.copytree(made / "captions", tmp_path / "run" / "captions")
    [one] = competitions(tmp_path / "run")
    assert {contest.picture for contest in one.contests} == {None}
    assert not one.judges_itself  # who wrote them is not known here
    run("report", tmp_path / "run")
    assert "picture not there" in (tmp_path / "run" / "report.html").read_text()


def test_what_was_taken_down_is_neither_counted_nor_shown(made, tmp_path):
    shutil.copytree(made, tmp_path / "run")
    gone = judged(made)[0]["uid"].hex()
    (tmp_path / "list.txt").write_text(gone)
    for name in ("pairs", "captions"):  # in either of them
        home = tmp_path / name
        shutil.copytree(made, home)
        run("takedown", tmp_path / "list.txt", "--in", home / name)
        [before], [after] = competitions(made, 1000), competitions(home, 1000)
        assert after.num_judged == len(after.contests) == before.num_judged - 1
        assert after.counts["itm"]["synthetic"].sum() == 2 * after.num_judged
        texts = {c.text for contest in after.contests for c in contest.written}
        assert f"it is {gone[:6]}" not in texts
        run("report", home)


def test_a_judge_without_match_probability_has_one_figure(made, tmp_path, data):
    pairs = Dataset.open(str(data / "pairs"))
    lineage = Lineage("capfilt", {}, (pairs.as_parent,))
    draft = Draft.begin(Folder.at(tmp_path / "candidates"), "candidates", CANDIDATES, lineage)
    for shard in pairs.shards():
        rows = shard.table.to_pylist()
        captions = [unscored(row["captions"]) for row in rows]
        captions = [
            with_scores(its, "clip:a", [(0.31, None) for _ in texts_to_score(its)])
            for its in captions
        ]
        table = candidate_rows([r["uid"] for r in rows], captions, [r["split"] for r in rows])
        accounts = {"pictures": Account.all_kept(len(rows)), "captions": caption_account(table)}
        number = shard.record.number
        commit_table(draft.folder, number, table, draft.rows_per_batch, **accounts)
    draft.publish(draft.committed().values())
    run("select-captions", tmp_path / "candidates", "--out", tmp_path / "captions")
    [one] = competitions(tmp_path)
    assert one.by == "itc"
    assert [plot.title for plot in score_plots(one, "a")] == ["Scores by similarity"]


def test_lineage_names_each_judge(made):
    rows = {row["name"]: row for row in lineage_rows(read_run(Folder.at(str(made))).made)}
    assert rows["candidates"]["frozen"] == [("captioner", DIGEST[:12]), (JUDGE, DIGEST[:12])]


def test_a_damaged_summary_is_named(made, tmp_path, refused):
    shutil.copytree(made, tmp_path / "run")
    (tmp_path / "run" / "captions" / "summary.json").write_text('{"web": 3}')
    assert "summary.json: field missing or wrong" in refused("report", tmp_path / "run")
    assert "max_pairs: 0 is not positive" in refused("report", made, "--max-pairs", 0)
