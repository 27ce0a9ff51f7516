"""CapFilt's first half: captions that a checkpoint writes, scored beside the web's.

The checkpoints were trained on features of a timm ViT with random weights (`data`, `unbroken`).
"""

import itertools
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jobs.caption_worker import CaptionWork, CaptionWorker
from jobs.cli import main
from jobs.compute import ComputeConfig
from jobs.shards import Task
from model.checkpoint import Checkpoint, save_tensors, write_checkpoint
from model.checkpoint_models import load_stage1
from model.generation.settings import GenerationConfig
from model.generation.stage1 import write_captions
from model.judging import Stage1Judge
from model.pretrained.clip import Clip, ClipJudge
from pipeline.accounting import Account
from pipeline.candidates import (
    WEB,
    ScoredCaption,
    candidate_rows,
    caption_account,
    filters_of_written,
    is_scored,
)
from pipeline.captions import normalise
from pipeline.dataset import Dataset, Shard, check_side_by_side, decode_row, read_table
from pipeline.draft import Draft
from pipeline.errors import ConfigError, DatasetError
from pipeline.lineage import Lineage
from pipeline.loader import as_tensor
from pipeline.order import writing_seeds
from pipeline.schemas import CANDIDATES, KEPT
from pipeline.shard import commit_table
from pipeline.storage import Folder
from pipeline.token_reader import ShardTokens
from pipeline.tombstones import add_tombstones
from pipeline.verify import verify

pytestmark = pytest.mark.usefixtures("ray_session")

NUM_WRITTEN = 4
GENERATION = GenerationConfig(
    method="nucleus", num_captions=NUM_WRITTEN, top_p=0.2, min_tokens=2, max_tokens=4, seed=3
)
"""So short, and so likely, that a picture has some captions twice."""
WRITING = ("--num-captions", NUM_WRITTEN, "--top-p", 0.2, "--max-tokens", 4, "--seed", 3)


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def clip(tmp_path_factory, save_clip) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip") / "small-clip")


@pytest.fixture(scope="module")
def command(data, unbroken) -> Callable[..., list[object]]:
    """`command(out, *options)`"""

    def command(out: Path, *options: object) -> list[object]:
        where = ("--features", data / "features", "--pairs", data / "pairs", "--out", out)
        return ["capfilt", *where, "--captioner", unbroken, *WRITING, *options]

    return command


@pytest.fixture(scope="module")
def candidates(tmp_path_factory, command, other, clip) -> Dataset:
    """Of the training pictures, by two judges; not to be changed."""
    out = tmp_path_factory.mktemp("capfilt") / "candidates"
    run(*command(out, "--judge", other, f"clip:{clip}"))
    return Dataset.open(str(out), "candidates")


@pytest.fixture
def work(tmp_path, data, unbroken) -> CaptionWork:
    """The same without judges, for this process."""
    pairs = Dataset.open(str(data / "pairs"))
    return CaptionWork(
        features=Dataset.open(str(data / "features")),
        pairs=pairs,
        captions=pairs,
        out=Folder.at(tmp_path / "out"),
        captioner=Checkpoint.open(str(unbroken)),
        judges=(),
        generation=GENERATION,
        filters=filters_of_written("default"),
        split="train",
        quota=None,
        compute=ComputeConfig(batch_size=16),
        device="cpu",
    )


@pytest.fixture
def made() -> Iterator[Callable[..., list[dict]]]:
    """Makes a shard in this process, with the one thread that a worker has."""
    threads = torch.get_num_threads()
    folders = itertools.count()

    def make(work: CaptionWork, number: int = 0) -> list[dict]:
        """Its rows."""
        work = replace(work, out=work.out / f"{next(folders)}")
        work.out.create()
        CaptionWorker(work)(Task(number, 0))
        return read_table(work.out, f"{number:05d}.arrow").to_pylist()

    yield make
    torch.set_num_threads(threads)


def rows_of(dataset: Dataset) -> list[dict]:
    return [row for shard in dataset.shards() for row in shard.table.to_pylist()]


def bare(captions: list[dict]) -> list[dict]:
    """Captions without their scores."""
    return [{k: caption[k] for k in ("text", "source", "status")} for caption in captions]


# What there is


def test_candidates_lie_beside_pairs_and_begin_with_the_webs(candidates, data):
    pairs = Dataset.open(str(data / "pairs"))
    check_side_by_side(pairs, candidates)
    assert list(verify(candidates)) == []
    both = list(zip(rows_of(candidates), rows_of(pairs), strict=True))
    assert {row["split"] for row, _ in both} == {"train", "validation", "test"}
    for row, web in both:
        assert row["split"] == web["split"]
        num_web = len(web["captions"])
        assert bare(row["captions"][:num_web]) == web["captions"]
        written = row["captions"][num_web:]
        assert len(written) == (NUM_WRITTEN if row["split"] == "train" else 0)
        assert {caption["source"] for caption in written} <= {"synthetic"}
        if row["split"] != "train":
            assert not any(caption["scores"] for caption in row["captions"])


def test_both_accounts_add_up(candidates):
    statuses = [c["status"] for row in rows_of(candidates) for c in row["captions"]]
    assert candidates.manifest.captions == Account.of(statuses)
    assert candidates.manifest.captions.dropped["rejected:duplicate"] > 0
    assert candidates.manifest.pictures == Account.all_kept(candidates.num_rows)


def test_what_was_written_is_each_pictures_own(candidates, data, unbroken):
    """As of a picture by itself, whose draws are those of its uid."""
    stage1 = load_stage1(Checkpoint.open(str(unbroken)))
    for row, (shard, number) in zip(rows_of(candidates), places(data / "features"), strict=True):
        if row["split"] != "train":
            continue
        (seed,) = writing_seeds(GENERATION.seed, [row["uid"]])
        generator = torch.Generator().manual_seed(seed)
        (expected,) = write_captions(stage1, tokens_of(shard, number), GENERATION, generator)
        found = [c["text"] for c in row["captions"] if c["source"] != WEB]
        assert found == [normalise(caption.text) for caption in expected]


def places(folder: Path) -> list[tuple[Shard, int]]:
    shards = Dataset.open(str(folder)).shards()
    return [(shard, row) for shard in shards for row in range(shard.table.num_rows)]


def tokens_of(shard: Shard, row: int) -> torch.Tensor:
    return as_tensor(ShardTokens(shard, 16).read([row]))


def test_scores_are_those_of_each_judge(candidates, data, other, clip):
    checkpoint = Checkpoint.open(str(other))
    judge, its_clip = Stage1Judge(load_stage1(checkpoint)), ClipJudge(Clip.of(str(clip)))
    names = [f"stage1:{checkpoint.digest[:12]}", "clip:small-clip"]
    looks = zip(places(data / "features"), places(data / "pairs"), strict=True)
    num_scored = 0
    for row, (seen, picture) in zip(rows_of(candidates), looks, strict=True):
        scored = [caption for caption in row["captions"] if caption["scores"]]
        if row["split"] != "train":
            continue
        assert scored == [caption for caption in row["captions"] if is_scored(caption)]
        texts = [caption["text"] for caption in scored]
        (fits,) = judge.scores(tokens_of(*seen), [texts])
        (cosines,) = its_clip.similarities([decode_row(*picture)], [texts])
        for caption, fit, cosine in zip(scored, fits, cosines, strict=True):
            assert [score["judge"] for score in caption["scores"]] == names
            by_stage1, by_clip = caption["scores"]
            assert (by_stage1["itc"], by_stage1["itm"]) == pytest.approx(fit, abs=1e-5)
            assert by_clip["itc"] == pytest.approx(cosine, abs=1e-5)
            assert by_clip["itm"] is None
            num_scored += 1
    assert num_scored > 100


def test_what_is_empty_or_was_written_and_rejected_is_not_scored(candidates):
    train = [c for row in rows_of(candidates) if row["split"] == "train" for c in row["captions"]]
    empty = [c for c in train if c["source"] == WEB and c["status"] != KEPT]
    assert {c["status"] for c in empty} == {"rejected:empty"}
    assert not any(c["scores"] for c in empty)
    written = [c for c in train if c["status"] == "rejected:duplicate"]
    assert written
    assert not any(c["scores"] for c in written)


def test_a_rejected_caption_of_the_web_is_scored_and_stays_rejected(tmp_path, work, made, other):
    rows = work.pairs.shard(0).table.to_pylist()
    captions = [
        [ScoredCaption(**caption, scores=[]) for caption in row["captions"]] for row in rows
    ]
    of_train = [its for row, its in zip(rows, captions, strict=True) if row["split"] == "train"]
    with_text = [its[0] for its in of_train if its and its[0]["text"]]
    for caption in with_text:
        caption["status"] = "rejected:file_name"
    table = candidate_rows([r["uid"] for r in rows], captions, [r["split"] for r in rows])
    draft = Draft.begin(Folder.at(tmp_path / "mine"), "captions", CANDIDATES, Lineage("test", {}))
    accounts = {"pictures": Account.all_kept(len(rows)), "captions": caption_account(table)}
    commit_table(draft.folder, 0, table, draft.rows_per_batch, **accounts)
    earlier = draft.publish(draft.committed().values())
    found = made(replace(work, captions=earlier, judges=(Checkpoint.open(str(other)),)))
    rejected = [c for r in found for c in r["captions"] if c["status"] == "rejected:file_name"]
    assert bare(rejected) == bare(with_text)
    assert len(rejected) > 3
    assert all(len(c["scores"]) == 1 for c in rejected)


def test_a_judge_that_was_not_trained_by_itm_tells_no_match_probability(
    tmp_path, work, made, other
):
    its = Checkpoint.open(str(other))
    lineage = replace(its.lineage, config={**its.lineage.config, "losses": "itc"})
    judge = write_checkpoint(
        replace(its, folder=Folder.at(tmp_path / "itc"), lineage=lineage, files={}),
        {role: its.read(role) for role in ("weights", "tokenizer")},
    )
    both = zip(*(made(replace(work, judges=(one,))) for one in (its, judge)), strict=True)
    scores = [
        (whole["scores"], half["scores"])
        for row, again in both
        for whole, half in zip(row["captions"], again["captions"], strict=True)
        if whole["scores"]
    ]
    assert len(scores) > 20
    for [whole], [half] in scores:
        assert half["itc"] == whole["itc"]
        assert (half["itm"], whole["itm"] is None) == (None, False)


# What it was made from, and how


def test_the_lineage_names_what_candidates_were_made_from(candidates, data, unbroken, other, clip):
    lineage = candidates.manifest.lineage
    assert lineage.job == "capfilt"
    sources = [Dataset.open(str(data / name)) for name in ("features", "pairs")]
    assert lineage.parents == tuple(source.as_parent for source in sources)
    digest = Checkpoint.open(str(other)).digest
    assert lineage.frozen == {
        "captioner": {"digest": Checkpoint.open(str(unbroken)).digest, "stage": 1},
        "judges": [
            {"name": f"stage1:{digest[:12]}", "digest": digest, "is_captioner": False},
            {
                "name": "clip:small-clip",
                "digest": Clip.of(str(clip)).digest,
                "is_captioner": False,
            },
        ],
    }
    assert lineage.config["generation"]["seed"] == 3
    assert lineage.config["split"] == "train"
    assert str(clip) not in json.dumps(lineage.to_json())


def test_run_json_tells_writing_from_judging_and_the_summary_how_diverse_captions_are(candidates):
    (ran,) = json.loads((Path(candidates.folder.path) / "run.json").read_text())["runs"]
    caption, _ = ran["phases"]
    summary = json.loads((Path(candidates.folder.path) / "summary.json").read_text())
    diversity = summary["diversity"]
    rows = [row for row in rows_of(candidates) if row["split"] == "train"]
    assert caption["sums"]["pictures_captioned"] == len(rows)
    assert caption["sums"]["captions_written"] == NUM_WRITTEN * len(rows)
    assert 0 < caption["sums"]["writing_s"] < ran["seconds"]
    assert 0 < caption["sums"]["judging_s"] < ran["seconds"]
    assert summary["judged"] == sum(any(c["scores"] for c in row["captions"]) for row in rows)
    kept = [c for row in rows for c in row["captions"] if c["status"] == KEPT]
    for source in ("web", "synthetic"):
        texts = [c["text"] for c in kept if c["source"] == source]
        assert diversity[source]["captions"] == len(texts)
        words = [word for text in texts for word in text.split()]
        assert diversity[source]["distinct_1"] == pytest.approx(
            len({word.casefold() for word in words}) / len(words), abs=1e-5
        )


def test_the_same_once_more_elsewhere_has_the_same_digest(
    tmp_path, candidates, command, unbroken, other, clip
):
    moved = [shutil.copytree(its, tmp_path / "moved" / its.name) for its in (other, clip)]
    judges = ("--judge", moved[0], f"clip:{moved[1]}")
    run(*command(tmp_path / "again", *judges, "--workers", 1))
    assert Dataset.open(str(tmp_path / "again")).digest == candidates.digest


def test_a_job_killed_before_its_summary_writes_it_and_nothing_else(
    tmp_path, candidates, command, other, clip, capsys
):
    """Nor is it lost where an earlier version has written less."""
    home = shutil.copytree(candidates.folder.path, tmp_path / "candidates")
    whole = (home / "summary.json").read_bytes()
    before = (home / "00000.arrow").stat().st_mtime_ns
    for left in (None, "{}"):
        (home / "summary.json").unlink()
        if left is not None:
            (home / "summary.json").write_text(left)
        capsys.readouterr()
        run(*command(home, "--judge", other, f"clip:{clip}"))
        assert (home / "summary.json").read_bytes() == whole
        said = capsys.readouterr().out
        assert f"on offer for {json.loads(whole)['judged']:,} judged pictures" in said
        assert "offered synthetic captions: " in said
        assert "captions/s" not in said  # nothing was written or judged
    assert (home / "00000.arrow").stat().st_mtime_ns == before


def test_captions_do_not_depend_on_batches(work, made):
    alone = made(replace(work, compute=ComputeConfig(batch_size=1)))
    for batch_size in (3, 16):
        together = made(replace(work, compute=ComputeConfig(batch_size=batch_size)))
        assert together == alone
    assert made(replace(work, generation=replace(GENERATION, seed=4))) != alone


@pytest.mark.parametrize("method", ["beam", "greedy"])
def test_other_searches_write_too(work, made, method):
    num = 2 if method == "beam" else 1
    generation = replace(GENERATION, method=method, num_captions=num)
    rows = made(replace(work, generation=generation))
    written = [[c for c in row["captions"] if c["source"] != WEB] for row in rows]
    assert [len(its) for its in written] == [num * (row["split"] == "train") for row in rows]


# Which pictures


def test_the_limit_takes_the_first_pictures_of_the_split(
    tmp_path, data, command, other, capsys, caplog
):
    with caplog.at_level(logging.INFO):
        run(*command(tmp_path / "few", "--judge", other, "--limit", 17))
    said = capsys.readouterr().out
    assert re.search(
        r"^68 captions of 17 pictures written and judged, [\d.,]+ captions/s$", said, re.M
    )
    told = [record.getMessage() for record in caplog.records]
    assert [line for line in told if "progress job=caption pictures=17/17 " in line]
    rows = rows_of(Dataset.open(str(tmp_path / "few")))
    captioned = [n for n, r in enumerate(rows) if any(c["source"] != WEB for c in r["captions"])]
    assert captioned == [n for n, row in enumerate(rows) if row["split"] == "train"][:17]
    for row, web in zip(rows, rows_of(Dataset.open(str(data / "pairs"))), strict=True):
        if not any(caption["source"] != WEB for caption in row["captions"]):
            assert bare(row["captions"]) == web["captions"]
            assert not any(caption["scores"] for caption in row["captions"])


def test_features_in_which_nothing_is_captioned_are_not_read(tmp_path, work, made):
    """Neither tokens nor their digest: a shard may be damaged there."""
    home = shutil.copytree(work.features.folder.path, tmp_path / "features")
    file = home / work.features.records[0].entry.file
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    features = Dataset.open(str(home))
    rows = made(replace(work, features=features, quota={}))
    assert [bare(row["captions"]) for row in rows] == [
        row["captions"] for row in work.pairs.shard(0).table.to_pylist()
    ]
    with pytest.raises(DatasetError, match=r"00000\.arrow: damaged"):
        made(replace(work, features=features))


def test_damaged_captions_of_an_earlier_round_are_told(tmp_path, candidates, other, work, made):
    judge = f"stage1:{Checkpoint.open(str(other)).digest[:12]}"
    run("select-captions", candidates.folder, "--judge", judge, "--out", tmp_path / "captions")
    file = tmp_path / "captions" / "00000.arrow"
    content = file.read_bytes()
    at = content.index(b"picture number")
    file.write_bytes(content[:at] + b"P" + content[at + 1 :])
    with pytest.raises(DatasetError, match=r"00000\.arrow: damaged"):
        made(replace(work, captions=Dataset.open(str(tmp_path / "captions"))))


def test_all_splits_may_be_captioned(work, made):
    rows = made(replace(work, split="all"))
    assert all(any(c["source"] != WEB for c in row["captions"]) for row in rows)


def test_a_picture_that_was_taken_down_has_no_captions(tmp_path, work, made):
    """And one that only has no tokens keeps the web's."""
    copies = {}
    for name in ("features", "pairs"):
        source = Path(getattr(work, name).folder.path)
        copies[name] = Path(shutil.copytree(source, tmp_path / name))
    uids = work.pairs.shard(0).table.column("uid").to_pylist()
    train = [n for n, row in enumerate(made(work)) if row["split"] == "train"]
    add_tombstones(Folder.at(copies["pairs"]), [uids[train[0]]])
    add_tombstones(Folder.at(copies["features"]), [uids[train[1]]])
    pairs, features = (Dataset.open(str(copies[name])) for name in ("pairs", "features"))
    rows = made(replace(work, pairs=pairs, captions=pairs, features=features))
    assert rows[train[0]]["captions"] is None
    whole = work.pairs.shard(0).table.column("captions").to_pylist()
    assert bare(rows[train[1]]["captions"]) == whole[train[1]]
    others = made(work)
    untouched = [n for n in range(len(rows)) if n not in train[:2]]
    assert [rows[n] for n in untouched] == [others[n] for n in untouched]


def test_of_an_earlier_round_the_web_competes_again_and_what_was_chosen(
    tmp_path, candidates, other, work, made
):
    judge = f"stage1:{Checkpoint.open(str(other)).digest[:12]}"
    out = tmp_path / "captions"
    run("select-captions", candidates.folder, "--judge", judge, "--top-k", 1, "--out", out)
    earlier = Dataset.open(str(out), "captions")
    again = made(replace(work, captions=earlier, generation=replace(GENERATION, seed=5)))
    web = work.pairs.shard(0).table.column("captions").to_pylist()
    num_stayed = num_back = 0
    for before, row, its_web in zip(earlier.shard(0).table.to_pylist(), again, web, strict=True):
        if row["split"] != "train":
            assert row == before
            continue
        stayed = [c for c in before["captions"] if c["source"] != WEB and c["status"] == KEPT]
        expected = its_web + bare(stayed)
        assert bare(row["captions"][: len(expected)]) == expected
        assert len(row["captions"]) == len(expected) + NUM_WRITTEN
        num_stayed += len(stayed)
        num_back += sum(c["status"] == "rejected:not_best" for c in before["captions"])
    assert num_stayed > 3
    assert num_back > 3


def test_a_second_round_ends_in_a_training(
    tmp_path, candidates, command, other, clip, stage1_command, rank_here, capsys
):
    """Of some pictures; the others keep what the first has chosen, which no share counts."""
    judge = f"stage1:{Checkpoint.open(str(other)).digest[:12]}"
    choosing = ("--judge", judge, "--top-k", 1)
    run("select-captions", candidates.folder, *choosing, "--out", tmp_path / "first")
    again = ("--judge", other, "--captions", tmp_path / "first", "--limit", 9, "--seed", 5)
    run(*command(tmp_path / "candidates", *again))
    parents = Dataset.open(str(tmp_path / "candidates")).manifest.lineage.parents
    first = Dataset.open(str(tmp_path / "first"))
    assert parents[-1] == first.as_parent
    capsys.readouterr()
    run("select-captions", tmp_path / "candidates", *choosing, "--out", tmp_path / "second")
    second = Dataset.open(str(tmp_path / "second"))
    assert list(verify(second)) == []
    both = list(zip(rows_of(second), rows_of(first), strict=True))
    train = [(row, before) for row, before in both if row["split"] == "train"]
    for row, before in train[9:]:
        assert bare(row["captions"]) == bare(before["captions"])
        assert not any(caption["scores"] for caption in row["captions"])
    stay = [
        caption
        for row, _ in train[9:]
        for caption in row["captions"]
        if (caption["source"], caption["status"]) == ("synthetic", KEPT)
    ]
    summary = json.loads((tmp_path / "second" / "summary.json").read_text())
    assert summary["judged"] == sum(any(c["scores"] for c in row["captions"]) for row, _ in train)
    assert 5 < summary["judged"] <= 9
    assert summary["synthetic_unjudged"] == len(stay) > 3
    assert f"that were not judged: {len(stay)} stay kept" in capsys.readouterr().out
    training = stage1_command(tmp_path / "stage1", "--steps", 2)
    training[training.index("--captions") + 1] = tmp_path / "second"
    with rank_here():
        run(*training)
    made = Checkpoint.open(str(tmp_path / "stage1"))
    assert made.lineage.parents[-1] == second.as_parent


# A judge alone


def test_a_judge_alone_scores_the_webs_captions_as_beside_a_captioner(
    tmp_path, data, candidates, other, clip, capsys
):
    out, judges = tmp_path / "run" / "candidates", ("--judge", other, f"clip:{clip}")
    where = ("--features", data / "features", "--pairs", data / "pairs", "--out", out)
    run("capfilt", *where, *judges)
    said = capsys.readouterr().out
    alone = Dataset.open(str(out), "candidates")
    assert list(verify(alone)) == []
    num_scored = 0
    for row, whole in zip(rows_of(alone), rows_of(candidates), strict=True):
        web = [caption for caption in whole["captions"] if caption["source"] == WEB]
        assert bare(row["captions"]) == bare(web)
        for caption, expected in zip(row["captions"], web, strict=True):
            assert [s["judge"] for s in caption["scores"]] == [
                s["judge"] for s in expected["scores"]
            ]
            for one, other_one in zip(caption["scores"], expected["scores"], strict=True):
                assert one["itc"] == pytest.approx(other_one["itc"], abs=1e-5)
                assert one["itm"] == pytest.approx(other_one["itm"], abs=1e-5)
                num_scored += 1
    assert num_scored > 50
    num_train = sum(row["split"] == "train" for row in rows_of(alone))
    assert f"the captions of {num_train} pictures judged" in said

    lineage = alone.manifest.lineage
    assert lineage.frozen == {"judges": candidates.manifest.lineage.frozen["judges"]}
    assert not {"generation", "filters"} & lineage.config.keys()

    chosen = tmp_path / "run" / "captions"
    run("select-captions", out, "--judge", "clip:small-clip", "--web-threshold", 0, "--out", chosen)
    assert list(verify(Dataset.open(str(chosen)))) == []
    summary = json.loads((chosen / "summary.json").read_text())
    assert (summary["synthetic"], summary["web"]) == (0, num_scored // 2)
    run("report", tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "clip:small-clip judged" in page
    assert "captions a picture were written" not in page


# What is wrong with a command


def test_what_does_not_belong_together_is_refused(
    tmp_path, data, command, refused, unbroken, other, stage2, clip, candidates, rename_encoder
):
    def refuse(*options: object) -> str:
        return refused(*command(tmp_path / "out", *options))

    copy = shutil.copytree(clip, tmp_path / "elsewhere" / clip.name)
    both = (f"clip:{clip}", f"clip:{copy}")
    assert "another one is clip:small-clip already" in refuse("--judge", *both)
    assert "is of stage 2; stage 1 is needed" in refuse("--judge", stage2)
    assert "nowhere: no such folder" in refuse("--judge", f"clip:{tmp_path}/nowhere")
    assert "viaduct select-captions" in refuse("--captions", candidates.folder)
    assert "limit: 0 is not positive" in refuse("--limit", 0)
    assert "num_captions: 4, but num_beams=3" in refuse("--method", "beam", "--num-beams", 3)
    where = ("--features", data / "features", "--pairs", data / "pairs", "--out", tmp_path / "out")
    assert "captioner, judge: name one of them at least" in refused("capfilt", *where)
    none = shutil.copytree(data / "pairs", tmp_path / "pairs")
    add_tombstones(
        Folder.at(none), [row["uid"] for row in rows_of(candidates) if row["split"] == "test"]
    )
    assert f"split: {none} has no picture of 'test' with image tokens" in refuse(
        "--pairs", none, "--split", "test"
    )
    features = shutil.copytree(data / "features", tmp_path / "features")
    rename_encoder(features)
    assert "features of another encoder" in refuse("--features", features)
    assert not (tmp_path / "out").exists()


def test_a_job_begun_with_other_settings_is_refused(candidates, command, other, clip, refused):
    judges = ("--judge", other, f"clip:{clip}")
    line = refused(*command(candidates.folder, *judges, "--seed", 9))
    assert "generation.seed: 3 there, 9 now" in line


def test_a_gpu_that_is_not_there_is_refused(work):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ConfigError, match="the worker sees no GPU"):
        CaptionWorker(replace(work, device="cuda"))


@pytest.mark.parametrize("broken", ["captioner", "judge"])
def test_weights_that_give_no_number_are_told(tmp_path, work, unbroken, other, broken):
    """Rather than captions of nothing, or scores that no threshold can meet."""
    source = Checkpoint.open(str(unbroken if broken == "captioner" else other))
    tensors = source.tensors()
    tensors["qformer.query_tokens"] += float("nan")
    contents = {"weights": save_tensors(tensors), "tokenizer": source.read("tokenizer")}
    home = Folder.at(tmp_path / "broken")
    made = write_checkpoint(replace(source, folder=home, files={}), contents)
    which = {"captioner": made} if broken == "captioner" else {"judges": (made,)}
    work.out.create()
    with pytest.raises(ConfigError, match=r"gives it .*nan.*: its weights are no good") as raised:
        CaptionWorker(replace(work, **which))(Task(0, 0))
    uids = work.pairs.shard(0).table.column("uid").to_pylist()
    assert raised.value.args[0].split()[1].rstrip(":") in {uid.hex() for uid in uids}
