"""`viaduct evaluate` on a small checkpoint, against slow counts of the same embeddings."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jobs.cli import main
from jobs.evaluate import held_out, ranking, retrieval
from jobs.evaluate.held_out import HeldOut
from jobs.evaluate.workers import Workers
from model.checkpoint import Checkpoint
from model.checkpoint_models import load_stage1
from model.reranking import rerank_scores
from pipeline.captions import kept_texts
from pipeline.dataset import Dataset
from pipeline.embeddings import Embeddings, read_embeddings, split_rows
from pipeline.errors import ConfigError
from pipeline.loader import Pairs, as_tensor
from pipeline.token_reader import TokenReader
from pipeline.tombstones import add_tombstones

pytestmark = pytest.mark.usefixtures("ray_session")

NO_CONTROL = ("--control", "none")


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def evaluation(embeddings: Path, data: Path, checkpoint: Path, *options: object) -> list[object]:
    where = ("--features", data / "features", "--captions", data / "pairs")
    return ["evaluate", embeddings, "--checkpoint", checkpoint, *where, *options]


@pytest.fixture(scope="module")
def result(tmp_path_factory, embeddings, data, unbroken) -> Callable[..., dict]:
    def result(*options: object) -> dict:
        out = tmp_path_factory.mktemp("evaluation") / "deep" / "evaluation.json"
        run(*evaluation(embeddings, data, unbroken, *options, "--out", out))
        return json.loads(out.read_text())

    return result


@pytest.fixture(scope="module")
def held(embeddings, data) -> Embeddings:
    """The embeddings of the test split, read whole."""
    pairs = Dataset.open(str(data / "pairs"))
    images, texts = (
        Dataset.open(str(embeddings / f"{kind}_embeddings")) for kind in ("image", "text")
    )
    return read_embeddings(images, texts, split_rows(pairs, "test"))


def cosines(held: Embeddings) -> np.ndarray:
    """[N, M]: of each picture with each caption."""
    return np.einsum("nqe,me->nmq", held.pictures, held.texts).max(axis=2)


def check_shares(recall: dict) -> None:
    for direction in ("picture_to_text", "text_to_picture"):
        found = recall[direction]
        assert set(found) == {"1", "5", "10"}
        for share in found.values():
            assert set(share) == {"value", "low", "high"}
            assert 0 <= share["low"] <= share["value"] <= share["high"] <= 1
        assert found["1"]["value"] <= found["5"]["value"] <= found["10"]["value"]
        median = recall["median_rank"][direction]
        assert 1 <= median["low"] <= median["value"] <= median["high"]


def test_recall_and_matching_are_measured_beside_chance_and_the_control(
    result, data, unbroken, bert_folder, held
):
    found = result("--control", f"hf:{bert_folder}")
    pairs = Dataset.open(str(data / "pairs"))
    features = Dataset.open(str(data / "features"))
    assert found["split"] == "test"
    assert found["num_pictures"] == len(held.pictures) > 5
    assert found["num_captions"] == len(held.texts) > 5
    assert found["checkpoint"] == Checkpoint.open(str(unbroken)).digest
    assert (found["captions"], found["features"]) == (pairs.digest, features.digest)
    assert found["rerank"]["k"] == 128
    assert set(found["recall"]) == {"q_former", "reranked", "ridge", "chance"}
    for recall in found["recall"].values():
        check_shares(recall)
    for direction in ("picture_to_text", "text_to_picture"):
        shares = found["recall"]["chance"][direction].values()
        assert all(share["low"] == share["value"] == share["high"] for share in shares)
    itm = found["itm"]
    assert set(itm) == {"accuracy", "prior", "num_pairs"}
    assert itm["accuracy"]["low"] <= itm["accuracy"]["value"] <= itm["accuracy"]["high"]
    assert itm["prior"] == pytest.approx(2 / 3)
    assert itm["num_pairs"] == 3 * len(Pairs(features, pairs, "test"))  # no two captions are equal


def test_a_control_that_is_fitted_on_the_same_pictures_by_name_is_the_same(
    result, data, bert_folder, refused, embeddings, unbroken
):
    control = ("--control", f"hf:{bert_folder}", "--rerank", 0)
    fitted_on = ("--control-features", data / "features", "--control-captions", data / "pairs")
    assert result(*control, *fitted_on) == result(*control)
    line = refused(*evaluation(embeddings, data, unbroken, *fitted_on[:2]))
    assert "control_features, control_captions: name both or none" in line


def test_recall_by_itc_is_that_of_a_slow_count(result, held):
    scores, owners = cosines(held), held.owners
    told = [picture for picture in range(len(scores)) if (owners == picture).any()]
    firsts = [owners[scores[picture].argmax()] == picture for picture in told]
    found = result(*NO_CONTROL, "--rerank", 0)
    assert found["rerank"] is None
    assert set(found["recall"]) == {"q_former", "chance"}
    found = found["recall"]["q_former"]
    assert found["picture_to_text"]["1"]["value"] == pytest.approx(np.mean(firsts))
    firsts = [scores[:, text].argmax() == owners[text] for text in range(len(owners))]
    assert found["text_to_picture"]["1"]["value"] == pytest.approx(np.mean(firsts))
    ranks = [
        1 + (scores[:, text] > scores[owners[text], text]).sum() for text in range(len(owners))
    ]
    assert found["median_rank"]["text_to_picture"]["value"] == np.median(ranks)


def slow_reranking(held, data, stage1, k) -> tuple[list[int], list[int]]:
    """Ranks from 1 of pictures and captions: every pair scored, sorted by hand."""
    pairs = Dataset.open(str(data / "pairs"))
    rows = [
        (shard.record.number, row) for shard in pairs.shards() for row in range(len(shard.live))
    ]
    texts = [
        [text for _, text in its]
        for shard in pairs.shards()
        for its in kept_texts(shard.table.column("captions"))
    ]
    places = [rows[row] for row in held.rows]
    all_texts = [text for row in held.rows for text in texts[row]]
    tokens = as_tensor(TokenReader(Dataset.open(str(data / "features"))).read(places))
    itm = np.array(rerank_scores(stage1, tokens, [all_texts] * len(places)))
    itc = cosines(held)

    def rank_of(itc: np.ndarray, itm: np.ndarray, right: np.ndarray) -> int:
        order = np.argsort(-itc).tolist()
        best = order[:k]
        if not right[best].any():
            return 1 + min(place for place, item in enumerate(order) if right[item])
        least = max(itm[item] for item in best if right[item]) - ranking.TIE
        return 1 + sum(itm[item] >= least for item in best if not right[item])

    owners = held.owners
    of_pictures = [
        rank_of(itc[p], itm[p], owners == p) for p in range(len(itc)) if (owners == p).any()
    ]
    of_captions = [
        rank_of(itc[:, t], itm[:, t], np.arange(len(itc)) == owners[t]) for t in range(len(owners))
    ]
    return of_pictures, of_captions


@pytest.mark.parametrize("k", [3, 8, 128])
def test_the_best_are_put_in_order_by_itm_and_the_others_stay(result, held, data, unbroken, k):
    stage1 = load_stage1(Checkpoint.open(str(unbroken)))
    expected = slow_reranking(held, data, stage1, k)
    found = result(*NO_CONTROL, "--rerank", k)["recall"]["reranked"]
    for direction, ranks in zip(("picture_to_text", "text_to_picture"), expected, strict=True):
        for at in (1, 5, 10):
            share = np.mean(np.array(ranks) <= at)
            assert found[direction][str(at)]["value"] == pytest.approx(share)
        assert found["median_rank"][direction]["value"] == np.median(ranks)


def test_each_pair_is_matched_once_in_parts_of_any_size(embeddings, data, monkeypatch):
    pairs = Dataset.open(str(data / "pairs"))
    images, texts = (
        Dataset.open(str(embeddings / f"{kind}_embeddings")) for kind in ("image", "text")
    )
    held = HeldOut.open(images, texts, pairs, "test")
    rankings = ranking.rank_held_out(held, 4, Workers(None))
    candidates = rankings.candidates
    assert len(np.unique(candidates, axis=0)) == len(candidates)
    assert len(candidates) < 4 * (held.num_pictures + held.num_captions)
    of_pictures = {(p, c) for p, row in enumerate(rankings.of_pictures.items) for c in row}
    of_captions = {(p, c) for c, row in enumerate(rankings.of_captions.items) for p in row}
    assert set(map(tuple, candidates.tolist())) == of_pictures | of_captions
    assert list(ranking._parts(candidates[:0])) == []
    for size in (1, 7, 30, 10_000):
        monkeypatch.setattr(ranking, "_PAIRS_A_TASK", size)
        parts = list(ranking._parts(candidates))
        assert np.array_equal(np.concatenate(parts), candidates)
        pictures = [np.unique(part[:, 0]) for part in parts]
        assert len(np.concatenate(pictures)) == len(np.unique(candidates[:, 0]))
        assert all(len(part) >= size for part in parts[:-1])


def test_held_out_pictures_and_captions_are_numbered_in_the_order_of_rows(embeddings, data, held):
    pairs = Dataset.open(str(data / "pairs"))
    images, texts = (
        Dataset.open(str(embeddings / f"{kind}_embeddings")) for kind in ("image", "text")
    )
    mine = HeldOut.open(images, texts, pairs, "test")
    assert (mine.num_pictures, mine.num_captions) == (len(held.pictures), len(held.texts))
    assert mine.owners.tolist() == held.owners.tolist()
    for blocks, vectors in (
        (mine.picture_blocks(), held.pictures),
        (mine.caption_blocks(), held.texts[:, None]),
    ):
        for first, block in blocks:
            assert np.array_equal(block, vectors[first : first + len(block)])
            assert len(block)
    rows = [
        (shard.record.number, row) for shard in pairs.shards() for row in range(len(shard.live))
    ]
    assert mine.places(np.arange(mine.num_pictures)) == [rows[row] for row in held.rows]
    assert len(mine.groups) == 1
    assert mine.groups[0] == sorted(mine.rows)


def test_texts_are_those_that_were_embedded(embeddings, data, monkeypatch):
    pairs = Dataset.open(str(data / "pairs"))
    images, texts = (
        Dataset.open(str(embeddings / f"{kind}_embeddings")) for kind in ("image", "text")
    )
    mine = HeldOut.open(images, texts, pairs, "test")
    assert mine.caption_texts() == [
        text
        for shard in pairs.shards()
        for row, its in enumerate(kept_texts(shard.table.column("captions")))
        if shard.table.column("split")[row].as_py() == "test"
        for _, text in its
    ]
    monkeypatch.setattr(
        "pipeline.embeddings.kept_texts", lambda column: [[(0, "another")]] * len(column)
    )
    with pytest.raises(ConfigError, match=r"picture \w{32}: other captions were embedded than"):
        mine.caption_texts()


def test_workers_find_what_this_process_finds(result, monkeypatch):
    """In many parts, so that numbers of shards, groups and tasks all count."""
    here = result(*NO_CONTROL, "--rerank", 4)
    monkeypatch.setattr(retrieval, "_LITTLE", 0)
    monkeypatch.setattr(ranking, "_PAIRS_A_TASK", 20)
    monkeypatch.setattr(held_out, "_GROUP", 4)
    assert result(*NO_CONTROL, "--rerank", 4, "--workers", 2) == here


def test_a_damaged_shard_is_named_by_workers_too(
    tmp_path, embeddings, data, unbroken, refused, monkeypatch
):
    shutil.copytree(data / "features", tmp_path / "features")
    (tmp_path / "features" / "00001.arrow").unlink()
    where = ("--features", tmp_path / "features", *NO_CONTROL, "--rerank", 4)
    monkeypatch.setattr(retrieval, "_LITTLE", 0)
    assert "00001.arrow: cannot be read" in refused(*evaluation(embeddings, data, unbroken, *where))


def test_another_split_gives_the_same_result_twice(result):
    options = (*NO_CONTROL, "--split", "validation", "--rerank", 4)
    found = result(*options)
    assert found["split"] == "validation"
    assert found["control"] == "none"
    assert result(*options) == found


def test_an_evaluation_is_printed_as_a_table_or_as_json(embeddings, data, unbroken, capsys):
    capsys.readouterr()
    options = (*NO_CONTROL, "--rerank", 4)
    run(*evaluation(embeddings, data, unbroken, *options, "--json"))
    told = json.loads(capsys.readouterr().out)
    run(*evaluation(embeddings, data, unbroken, *options))
    table = capsys.readouterr().out
    for name in ("q_former", "reranked"):
        value = told["recall"][name]["picture_to_text"]["10"]["value"]
        assert f"{100 * value:.1f}" in table
    assert f"test: {told['num_pictures']} pictures, {told['num_captions']} captions" in table
    assert f"the best 4 of each query, {told['rerank']['num_pairs']} pairs" in table
    assert f"ITM accuracy {100 * told['itm']['accuracy']['value']:.1f}" in table
    assert "pictures that were trained on: 0 (0 by uid, 0 of equal pixels, 0 alike)" in table


def test_an_empty_split_is_refused(tmp_path, embeddings, data, unbroken, refused):
    shutil.copytree(data / "pairs", tmp_path / "pairs")
    pairs = Dataset.open(str(tmp_path / "pairs"))
    for name in ("text_embeddings", "image_embeddings"):
        shutil.copytree(embeddings / name, tmp_path / "embeddings" / name)
    for shard in pairs.shards():
        rows = shard.table.select(["uid", "split"]).to_pylist()
        uids = [row["uid"] for row in rows if row["split"] == "test"]
        add_tombstones(Dataset.open(str(tmp_path / "embeddings/text_embeddings")).folder, uids)
    where = ("--captions", tmp_path / "pairs", *NO_CONTROL)
    line = refused(*evaluation(tmp_path / "embeddings", data, unbroken, *where))
    assert f"{tmp_path}/pairs: its split 'test' has no caption" in line


def test_what_is_taken_down_from_pairs_is_not_measured(tmp_path, embeddings, data, unbroken, held):
    """At once, whatever else knows of it; without its tokens ITM could not see it."""
    shutil.copytree(data / "pairs", tmp_path / "pairs")
    pairs = Dataset.open(str(tmp_path / "pairs"))
    uids = [uid for shard in pairs.shards() for uid in shard.table.column("uid").to_pylist()]
    add_tombstones(pairs.folder, [uids[held.rows[0]]])
    out = tmp_path / "evaluation.json"
    where = ("--captions", tmp_path / "pairs", *NO_CONTROL, "--rerank", 2, "--out", out)
    run(*evaluation(embeddings, data, unbroken, *where))
    assert json.loads(out.read_text())["num_pictures"] == len(held.pictures) - 1


def test_features_that_lack_a_picture_are_refused(
    tmp_path, embeddings, data, unbroken, refused, held
):
    shutil.copytree(data / "features", tmp_path / "features")
    features = Dataset.open(str(tmp_path / "features"))
    uids = [uid for shard in features.shards() for uid in shard.table.column("uid").to_pylist()]
    add_tombstones(features.folder, [uids[held.rows[0]]])
    where = ("--features", tmp_path / "features", *NO_CONTROL)
    line = refused(*evaluation(embeddings, data, unbroken, *where))
    assert f"{tmp_path}/features: other pictures were taken down than embedded" in line


def test_a_number_of_candidates_below_zero_is_refused(embeddings, data, unbroken, refused):
    line = refused(*evaluation(embeddings, data, unbroken, "--rerank", -1))
    assert "rerank: -1 is negative" in line
