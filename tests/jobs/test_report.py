"""One page of all that a run made: true to the manifests, safe, and of one file."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.cli import main
from jobs.report.contents import read_run
from jobs.report.examples import Example, read_examples
from jobs.wording import duration, instant, percent
from pipeline.dataset import Dataset
from pipeline.storage import Folder

HOSTILE = '<script>alert("x")</script><img src=http://evil.example/x onerror=alert(1)>'
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def report(*arguments: object) -> int:
    return main(["report", *map(str, arguments)])


# A run


@pytest.fixture(scope="module")
def datasets(tmp_path_factory, ray_session, draw_folder) -> Path:
    """`raw` and `pairs` of pictures some of which are missing, broken or there twice."""
    home = tmp_path_factory.mktemp("datasets")
    source = draw_folder(home / "source", 30)
    (source / "images" / "0003.png").write_text("<html>not here</html>")
    whole = (source / "images" / "0009.png").read_bytes()
    (source / "images" / "0009.png").write_bytes(whole[: len(whole) // 2])
    assert main(["ingest", str(source), "--out", str(home / "raw")]) == 0
    shares = ["--validation-share", "0.2", "--test-share", "0.2"]
    assert main(["curate", str(home / "raw"), "--out", str(home / "pairs"), *shares]) == 0
    shutil.rmtree(source)
    return home


@pytest.fixture
def run_folder(tmp_path, datasets) -> Path:
    """A whole run: real datasets, and what training and the rest would have written."""
    home = tmp_path / "run <b>&amp;"
    shutil.copytree(datasets, home)
    pairs = Dataset.open(str(home / "pairs"))
    write_training(home / "stage1", 1, pairs.digest, stage1_lines())
    write_training(home / "stage2", 2, "1" * 64, stage2_lines())
    write_index(home / "index", "1" * 64)
    write(home / "evaluation.json", evaluation())
    looked = [f"look/{number}.jpg" for number in range(3)]
    for number, name in enumerate(looked):
        picture(home / name, number)
        (home / name).with_suffix(".txt").write_text(f"told {number}\n{HOSTILE}\n")
    for stage in (1, 2):
        captions = [{"picture": n, "caption": f"stage {stage} wrote {n}"} for n in looked]
        captions[1]["caption"] = HOSTILE
        found = {"checkpoint": "1" * 64, "stage": stage, "captions": captions}
        write(home / f"captions-stage{stage}.json", found)
    picture(home / "searches" / "00-01.jpg", 7)
    write(home / "searches" / "results.json", searches(looked[0]))
    planted = {
        "html": {"planted": 1, "found": 1, "as": "failed:not_a_picture"},
        "truncated": {"planted": 2, "found": 1, "as": "failed:truncated"},
        "says_nothing": {"planted": 5, "found": None, "as": None},
        "wrong_caption": {
            **{"planted": 9, "found": 2, "as": None},
            **{"judged": 3, "true": 40, "true_left_out": 1},
        },
    }
    write(home / "planted.json", planted)
    times = [{"step": "ingest", "command": "viaduct ingest 'a b'", "seconds": 75.0}]
    times.append({"step": "curate", "command": "viaduct curate raw", "seconds": 5.5})
    write(home / "timings.json", times)
    return home


def write(file: Path, value: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


def picture(file: Path, number: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((80, 60), Image.Resampling.NEAREST).save(file)


def lineage(job: str, kind: str, parent: str) -> dict:
    return {
        "job": job,
        "config": {},
        "parents": [{"kind": kind, "digest": parent}],
        "frozen": {"encoder": {"name": "offline:efficientnet_lite0", "weights_digest": "e" * 64}},
    }


def write_training(folder: Path, stage: int, parent: str, lines: list[dict]) -> None:
    made = lineage(f"train-stage{stage}", "pairs" if stage == 1 else "stage1", parent)
    value = {"stage": stage, "step": 100, "digest": str(stage) * 64, "lineage": made}
    write(folder / "checkpoint.json", value)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    # What lies below is the training's own, and no training beside it.
    write(folder / "checkpoints" / "step-000100" / "checkpoint.json", value)


def write_index(folder: Path, checkpoint: str) -> None:
    made = lineage("index", "image_embeddings", "9" * 64)
    made["frozen"] = {"checkpoint": {"digest": checkpoint, "stage": 1}}
    shards = [
        {"files": {"picture_vectors.f32": {"rows": rows}, "pictures.arrow": {"rows": rows // 8}}}
        for rows in (128, 80)
    ]
    write(
        folder / "index.json", {"digest": "7" * 64, "lineage": made, "shards": shards, "added": []}
    )


def stage1_lines() -> list[dict]:
    lines = []
    for step in range(10, 101, 10):
        line = {"step": step, "split": "train", "loss": 9 - step / 20, "itc": 4 - step / 40}
        line |= {"itg": 5 - step / 40, "temperature": 0.07, "pairs_per_s": 100.0 + step}
        if step > 30:
            line |= {"itm": 0.6, "itm_accuracy": 0.5 + step / 400}
        lines.append(line | {"data_wait_s": 0.001})
        if step % 50 == 0:
            held_out = {"itc": 4.2 - step / 40, "itg": 5.0, "itm": 0.62, "itm_accuracy": 0.68}
            held_out |= {"recall_at_1_picture_to_text": step / 300}
            held_out |= {"recall_at_1_text_to_picture": step / 400}
            lines.append({"step": step, "split": "validation", **held_out})
    return lines


def stage2_lines() -> list[dict]:
    train = [{"step": s, "split": "train", "loss": 4 - s / 20, "perplexity": 9.0} for s in (5, 10)]
    return [*train, {"step": 10, "split": "validation", "loss": 3.75, "perplexity": 8.5}]


def evaluation() -> dict:
    def recalls(at_1: float, spread: float) -> dict:
        values = {"1": at_1, "5": min(1.0, 2 * at_1), "10": min(1.0, 3 * at_1)}
        return {
            direction: {
                k: {"value": v, "low": max(0.0, v - spread), "high": min(1.0, v + spread)}
                for k, v in values.items()
            }
            for direction in ("picture_to_text", "text_to_picture")
        }

    return {
        "split": "test",
        "num_pictures": 531,
        "num_captions": 1500,
        "checkpoint": "1" * 64,
        "recall": {
            "q_former": recalls(0.3141, 0.03),
            "reranked": recalls(0.3456, 0.03),
            "ridge": recalls(0.1234, 0.02),
            "chance": recalls(0.00188, 0.0),
        },
        "itm": {
            "accuracy": {"value": 0.781, "low": 0.76, "high": 0.8},
            "prior": 2 / 3,
            "num_pairs": 1593,
        },
        "rerank": {"k": 16, "num_pairs": 30_000},
        "leaks": {"num_pictures": 3, "same_uid": 1, "same_pixels": 2, "alike": 0, "uids": []},
    }


def searches(image: str) -> dict:
    def result(rank: int, **more: object) -> dict:
        found = {"rank": rank, "score": 0.6125, "uid": "ab", "url": "http://web.example/a.png"}
        return found | {"captions": [HOSTILE], "shard": 0, "row": rank} | more

    return {
        "index": "7" * 64,
        "searches": [
            {"text": f"a red boat {HOSTILE}", "results": [result(1, file="00-01.jpg"), result(2)]},
            {"image": image, "results": [result(1, file="../look/0.jpg", captions=[])]},
            {"text": "nothing like it", "results": []},
        ],
    }


# Reading the page


class Page(HTMLParser):
    """Elements, their attributes, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self._skip = False
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        self._skip = tag == "style"
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td") and self.rows:
            self.rows[-1].append("")

    def handle_data(self, data):
        if not self._skip:
            self.words.append(data)
            if self.rows and self.rows[-1]:
                self.rows[-1][-1] += data

    def table(self) -> dict[str, list[str]]:
        """Rows of all tables by their first cell, white space made one."""
        cells = [[" ".join(cell.split()) for cell in row] for row in self.rows if row]
        return {row[0]: row[1:] for row in cells}


@pytest.fixture
def page(run_folder) -> Page:
    assert report(run_folder) == 0
    return Page((run_folder / "report.html").read_text())


def test_every_part_of_a_run_is_on_the_page(page):
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    sections = {
        "funnel",
        "examples",
        "faults",
        "training",
        "retrieval",
        "captions",
        "searches",
        "time",
    }
    assert sections | {"lineage"} <= ids
    told = " ".join(a["aria-label"] for _, a in page.tags if "aria-label" in a)
    for title in ("Losses", "ITM accuracy", "Recall at 1 during", "temperature", "Perplexity"):
        assert title in told
    assert "ITM is first logged at step 40" in told
    for words in ("stage 2 wrote look/2.jpg", "told 0", "viaduct ingest 'a b'", "1 min 15 s"):
        assert words in page.text
    assert "run <b>&amp;" in page.text


def test_the_funnel_says_what_the_manifests_say(run_folder, page):
    rows = [[" ".join(cell.split()) for cell in row] for row in page.rows if row]
    for account_of in ("pictures", "captions"):
        told = iter(rows)
        for name in ("raw", "pairs"):
            manifest = Dataset.open(str(run_folder / name)).manifest
            account = getattr(manifest, account_of)
            if account_of == "captions":
                pictures = manifest.pictures
                assert account.num_in != pictures.num_in  # or the search below could meet those
            head = next(r for r in told if r[0].startswith(name) and f"{account.num_in} in" in r[0])
            assert head
            found = {}
            for row in told:
                found[row[0]] = int(row[1].replace(",", ""))
                if len(found) == 1 + len(account.dropped):
                    break
            assert found == {"kept": account.num_kept, **account.dropped}
            assert sum(found.values()) == account.num_in


def test_splits_are_counted_without_what_was_taken_down(run_folder):
    (splits,) = [s.splits for s in read_run(Folder.at(str(run_folder))).stages if s.splits]
    pairs = Dataset.open(str(run_folder / "pairs"))
    assert sum(splits.values()) == pairs.num_rows
    assert set(splits) == {"train", "validation", "test"}


def test_planted_faults_that_were_missed_are_marked(page):
    table = page.table()
    assert table["html"] == ["1", "1", "failed:not_a_picture"]
    assert table["truncated"] == ["2", "1", "failed:truncated not as many as were planted"]
    assert table["says nothing"][:2] == ["5", "-"]
    *counts, told = table["wrong caption"]
    assert counts == ["9", "2"]
    assert told.startswith("not kept, of 3 that were judged; of 40 true ones 1 ")


def test_recall_stands_beside_its_controls_with_intervals(page):
    table = page.table()
    assert table["Q-Former"][0] == "31.4% 28.4\u201334.4"
    assert len(table["Q-Former"]) == 6
    assert table["re-ranked by ITM"][0] == "34.6% 31.6\u201337.6"
    assert table["Ridge control"][3] == "12.3% 10.3\u201314.3"
    assert table["Chance"][0] == "0.19%"
    assert "ITM tells pairs from non-pairs in 78.1% 76.0\u201380.0 of 1,593 cases" in page.text
    assert "with ITM putting the best 16 of each query in order" in page.text
    assert "3 of these pictures were trained on: 1 by uid, 2 of equal pixels, 0 alike" in page.text


def test_lineage_names_parents_that_are_here(run_folder, page):
    table = page.table()
    pairs = Dataset.open(str(run_folder / "pairs")).digest[:12]
    assert table["stage1"][0] == "1" * 12
    assert f"pairs {pairs}" in table["stage1"][3]
    assert f"raw {Dataset.open(str(run_folder / 'raw')).digest[:12]}" in table["pairs"][3]
    assert "image_embeddings, not in this run 999999999999" in table["index"][3]
    assert "stage1 111111111111" in table["index"][3]
    assert not any(name.startswith("stage1/checkpoints") for name in table)


def test_hostile_texts_are_shown_and_not_obeyed(page):
    assert page.text.count(HOSTILE) >= 5
    assert not any(tag == "script" or "onerror" in attributes for tag, attributes in page.tags)


def test_the_page_asks_for_nothing_beside_itself(run_folder, page):
    text = (run_folder / "report.html").read_text()
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "action", "srcset", "poster", "data"):
                assert value.startswith(("data:image/jpeg;base64,", "#")), (tag, name, value)
            assert name == "src" or not name.startswith("on")
    assert not any(tag in ("link", "iframe", "object", "base", "script") for tag, _ in page.tags)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    policy = [a for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
    assert policy[0]["content"].startswith("default-src 'none'")


def test_pictures_are_inside_the_page(run_folder, page):
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    examples = [one for some in examples_of(run_folder).values() for one in some]
    num_examples = sum((one.picture is not None) + (one.kept is not None) for one in examples)
    assert all(attributes["alt"] for attributes in images)
    images = images[num_examples:]
    # Three captioned, one found, one searched for; what leads out of the searches' folder is not.
    assert len(images) == 5
    data = base64.b64decode(images[0]["src"].partition(",")[2])
    assert Image.open(io.BytesIO(data)).size == (80, 60)
    assert page.text.count("picture not there") == 2


def examples_of(folder: Path, limit: int = 12) -> dict[str, list[Example]]:
    return read_examples(read_run(Folder.at(str(folder))).datasets, limit)


@pytest.fixture(scope="module")
def findings(tmp_path_factory, ray_session, draw_folder) -> Path:
    """`raw` and `pairs` of pictures with duplicates, captions that say nothing and broken files."""
    home = tmp_path_factory.mktemp("findings")
    source = draw_folder(home / "source", 12)
    (source / "images" / "0003.png").write_text("<html>not here</html>")
    rows = [json.loads(line) for line in (source / "pairs.jsonl").read_text().splitlines()]
    for row, caption in ((4, "IMG_1234.jpg"), (8, "click to enlarge"), (9, "")):
        rows[row]["captions"] = [caption]
    (source / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["ingest", str(source), "--out", str(home / "raw")]) == 0
    assert main(["curate", str(home / "raw"), "--out", str(home / "pairs")]) == 0
    shutil.rmtree(source)
    return home


def test_examples_show_what_was_found(findings):
    found = examples_of(findings)
    united = found["Pictures that were like others"]
    assert [(one.reason, one.url) for one in united] == [("duplicate", "images/0006.png")]
    assert united[0].picture == united[0].kept  # of equal pixels
    assert united[0].texts
    rejected = {one.reason: one for one in found["Captions that were rejected"]}
    assert rejected.keys() == {"rejected:boilerplate", "rejected:file_name"}
    assert rejected["rejected:boilerplate"].texts == ["click to enlarge"]
    assert rejected["rejected:boilerplate"].url == "images/0008.png"
    assert all(one.picture for one in rejected.values())
    lost = {one.reason: (one.url, one.picture) for one in found["Rows without a picture"]}
    assert lost == {"failed:not_a_picture": ("images/0003.png", None)}
    assert report(findings, "--out", findings / "page.html") == 0
    page = Page((findings / "page.html").read_text())
    for words in ("duplicate , beside the one kept", "click to enlarge", "images/0003.png"):
        assert words in page.text


def test_no_more_examples_than_asked_for_and_of_each_kind_in_turn(findings):
    for limit in range(1, 5):
        found = examples_of(findings, limit)
        assert sum(map(len, found.values())) == limit
        assert len(found) == min(3, limit)


def test_what_was_taken_down_is_no_example(findings, tmp_path):
    shutil.copytree(findings, tmp_path / "run")
    before = examples_of(tmp_path / "run")
    names = {one.url for some in before.values() for one in some}
    (tmp_path / "list.txt").write_text("\n".join(names))
    assert main(["takedown", str(tmp_path / "list.txt"), "--in", str(tmp_path / "run")]) == 0
    assert examples_of(tmp_path / "run") == {}


def test_without_its_raw_a_dataset_shows_what_it_has_itself(findings, tmp_path):
    shutil.copytree(findings / "pairs", tmp_path / "pairs")
    assert examples_of(tmp_path).keys() == {"Captions that were rejected"}
    shutil.rmtree(tmp_path / "pairs" / ".work")
    assert examples_of(tmp_path).keys() == {"Captions that were rejected"}


def test_identifiers_are_unique_and_references_lead_to_them(page):
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = {a[name][1:] for _, a in page.tags for name in ("href", "xlink:href") if name in a}
    clips = {a["clip-path"][5:-1] for _, a in page.tags if "clip-path" in a}
    assert clips
    assert references | clips <= set(ids)


def test_tables_and_figures_are_named_for_who_does_not_see_them(page):
    for tag, attributes in page.tags:
        if tag == "th":
            assert attributes["scope"] in ("col", "row", "colgroup", "rowgroup")
        if attributes.get("role") == "img":
            assert len(attributes["aria-label"]) > 20
    assert ("html", {"lang": "en"}) in page.tags


def test_equal_runs_give_equal_pages(run_folder, tmp_path):
    assert report(run_folder, "--out", tmp_path / "a.html") == 0
    assert report(run_folder, "--out", tmp_path / "b.html") == 0
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert not (run_folder / "report.html").exists()


PARTS = {
    "funnel": ["raw", "pairs"],
    "faults": ["planted.json"],
    "training": ["stage1", "stage2"],
    "retrieval": ["evaluation.json"],
    "captions": ["captions-stage1.json", "captions-stage2.json"],
    "searches": ["searches"],
}


@pytest.mark.parametrize("section", PARTS)
def test_what_is_absent_is_left_out_and_the_rest_stays(run_folder, section):
    for name in PARTS[section]:
        gone = run_folder / name
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    assert report(run_folder) == 0
    tags = Page((run_folder / "report.html").read_text()).tags
    ids = {attributes["id"] for _, attributes in tags if "id" in attributes}
    links = {attributes["href"] for tag, attributes in tags if tag == "a"}
    assert section not in ids
    assert f"#{section}" not in links
    assert PARTS.keys() - {section} <= ids


def test_without_timings_the_logs_of_the_jobs_tell_the_time(run_folder):
    (run_folder / "timings.json").unlink()
    steps = read_run(Folder.at(str(run_folder))).steps
    assert [step.name for step in steps] == ["raw", "pairs"]
    assert all(step.seconds > 0 for step in steps)


def test_a_single_dataset_has_a_report_of_its_own(datasets, tmp_path):
    assert report(datasets / "pairs", "--out", tmp_path / "pairs.html") == 0
    rows = Page((tmp_path / "pairs.html").read_text()).rows
    kept = [int(row[1]) for row in rows if row and row[0] == "kept"]
    manifest = Dataset.open(str(datasets / "pairs")).manifest
    assert kept == [manifest.pictures.num_kept, manifest.captions.num_kept]


def test_an_unfinished_training_shows_what_it_has_logged(run_folder):
    (run_folder / "stage1" / "checkpoint.json").unlink()
    with (run_folder / "stage1" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 110, "spl')  # being written
    assert report(run_folder) == 0
    text = Page((run_folder / "report.html").read_text()).text
    assert "stage1: stage 1, not finished" in text.replace(" ,", ",")
    assert "Not finished: stage1" in text


def test_an_unfinished_training_of_one_loss_is_known_as_stage_1(tmp_path):
    line = {"step": 10, "split": "train", "loss": 3.0, "itg": 3.0}
    (tmp_path / "captioner").mkdir()
    (tmp_path / "captioner" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (training,) = read_run(Folder.at(str(tmp_path))).trainings
    assert (training.stage, training.finished) == (1, False)


def test_no_more_pictures_than_asked_for(run_folder):
    assert report(run_folder, "--max-pictures", 1) == 0
    page = Page((run_folder / "report.html").read_text())
    assert "4 more captioned pictures and searches are not shown" in page.text
    assert len([tag for tag, _ in page.tags if tag == "article"]) == 1


def test_a_run_with_nothing_in_it_is_one_clear_line(tmp_path, capsys):
    assert report(tmp_path) == 2
    assert "holds nothing to report" in capsys.readouterr().err
    assert report(tmp_path / "absent") == 2
    assert "absent: no such folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_additions_to_an_index_are_told_beside_it(run_folder):
    home = run_folder / "index"
    whole = json.loads((home / "index.json").read_text())
    for number, digest in ((1, "5" * 64), (2, "6" * 64)):
        own = whole | {"digest": digest, "shards": whole["shards"][:number]}
        write(home / f"added-{number:05d}" / "index.json", own)
    write(home / "index.json", whole | {"added": [{"folder": "added-00001", "digest": "5" * 64}]})
    assert report(run_folder) == 0
    page = Page((run_folder / "report.html").read_text())
    assert "index/added-00001" in page.text
    assert "128 vectors" in page.text
    assert "index/added-00002" in page.text  # as unfinished
    assert "5" * 12 in page.text
    assert "6" * 12 not in page.text


def test_a_folder_is_no_file_to_write(run_folder, capsys):
    assert report(run_folder, "--out", run_folder) == 2
    assert "is a folder; name a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("evaluation.json", '{"recall": {"ridge": 3}}', "evaluation.json: field missing or wrong"),
        ("evaluation.json", "{", "evaluation.json: not JSON"),
        (
            "evaluation.json",
            json.dumps(evaluation() | {"leaks": {"num_pictures": 3}}),
            "evaluation.json: field missing or wrong",
        ),
        ("planted.json", '{"html": {"planted": 3}}', "planted.json: field missing or wrong"),
        ("timings.json", "[3]", "timings.json: field missing or wrong"),
        ("captions-stage1.json", '{"checkpoint": ""}', "captions-stage1.json: field missing"),
        ("searches/results.json", '{"searches": [{}]}', "results.json: field missing or wrong"),
        ("stage1/metrics.jsonl", "x\n{}\n", "metrics.jsonl: line 1 is not JSON"),
        ("stage1/metrics.jsonl", "[]\n", "metrics.jsonl: line 1: field missing or wrong"),
        ("stage2/checkpoint.json", "{}", "checkpoint.json: field missing or wrong"),
        ("pairs/dataset.json", "{}", "dataset.json: field missing or wrong"),
    ],
)
def test_a_damaged_file_is_named(run_folder, capsys, file, content, message):
    (run_folder / file).write_text(content)
    assert report(run_folder) == 2
    assert message in capsys.readouterr().err
    assert not (run_folder / "report.html").exists()


def test_captions_of_others_are_no_concern_of_ours(run_folder):
    (run_folder / "captions_val2014.json").write_text('{"annotations": []}')
    assert report(run_folder) == 0


def test_searches_by_words_and_picture_are_shown_and_those_for_captions_left_out(run_folder):
    file = run_folder / "searches" / "results.json"
    found = json.loads(file.read_text())
    both = found["searches"][1] | {"text": "and at night"}
    captions = {"image": both["image"], "captions": [{"rank": 1, "score": 0.5, "text": "x"}]}
    write(file, found | {"searches": [captions, both]})
    assert report(run_folder) == 0
    page = Page((run_folder / "report.html").read_text())
    assert "with the words: and at night" in page.text


def test_numbers_as_people_read_them():
    assert [percent(v) for v in (0.0, 0.0019, 0.3141, 1.0)] == ["0.0%", "0.19%", "31.4%", "100.0%"]
    assert [duration(v) for v in (0.04, 59.9, 75, 3720)] == [
        *("0.0 s", "59.9 s", "1 min 15 s"),
        "1 h 2 min",
    ]
    assert instant("2026-01-02T03:04:05+01:00") == "2026-01-02 02:04 UTC"
    assert instant("some day") == "some day"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_a_browser_draws_the_page_and_has_nothing_to_complain_of(run_folder, tmp_path):
    assert report(run_folder, "--out", tmp_path / "report.html") == 0

    def browse(*options: str) -> subprocess.CompletedProcess[str]:
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        common = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", profile]
        return subprocess.run(
            [CHROMIUM, *common, *options, (tmp_path / "report.html").as_uri()],
            capture_output=True,
            text=True,
            timeout=180,
            check=True,
            env=os.environ | {"HOME": str(tmp_path)},
        )

    dumped = browse("--dump-dom")
    assert "CONSOLE" not in dumped.stderr
    page = Page(dumped.stdout)
    assert page.text.count(HOSTILE) >= 5
    assert len([tag for tag, _ in page.tags if tag == "svg"]) == 8
    for width, theme in ((1200, "light"), (390, "dark")):
        shot = tmp_path / f"{theme}.png"
        dark = ["--blink-settings=preferredColorScheme=0"] if theme == "dark" else []
        browse(f"--screenshot={shot}", f"--window-size={width},3000", *dark)
        pixels = np.asarray(Image.open(shot).convert("L"))
        assert pixels.std() > 10  # something is drawn
        assert (np.median(pixels) < 60) == (theme == "dark")
