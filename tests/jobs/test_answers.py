"""From a trained checkpoint to answers: embed, index, search, evaluate.

The checkpoint was trained on features of a timm ViT with random weights (`data`, `unbroken`).
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from jobs.cli import main
from jobs.embed import embed_shard_pictures, embed_shard_texts
from model.checkpoint import Checkpoint
from model.checkpoint_models import load_stage1
from pipeline.accounting import Account
from pipeline.captions import kept_texts
from pipeline.dataset import Dataset, check_side_by_side
from pipeline.draft import Draft
from pipeline.embeddings import first_rows, read_embeddings, split_rows
from pipeline.features import token_columns
from pipeline.loader import Pairs
from pipeline.shard import commit_table
from pipeline.storage import Folder
from pipeline.tombstones import add_tombstones
from pipeline.verify import verify

pytestmark = pytest.mark.usefixtures("ray_session")


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory, data, unbroken) -> Path:
    """`image_embeddings` and `text_embeddings` of all pictures; not to be changed."""
    out = tmp_path_factory.mktemp("answers") / "embeddings"
    run(
        *("embed", "--checkpoint", unbroken, "--out", out),
        *("--features", data / "features", "--captions", data / "pairs"),
    )
    return out


@pytest.fixture(scope="module")
def stage1(unbroken):
    return load_stage1(Checkpoint.open(str(unbroken)))


# Embed


def test_embeddings_lie_beside_pairs_and_are_those_of_the_model(embeddings, data, stage1):
    pairs, features = (Dataset.open(str(data / name)) for name in ("pairs", "features"))
    images = Dataset.open(str(embeddings / "image_embeddings"), "image_embeddings")
    texts = Dataset.open(str(embeddings / "text_embeddings"), "text_embeddings")
    check_side_by_side(pairs, images, texts)
    assert list(verify(images)) == list(verify(texts)) == []
    found = read_embeddings(images, texts)
    assert len(found.rows) == pairs.num_rows
    train = Pairs(features, pairs, "train")
    places = train.parts[0].places(np.arange(len(train)))
    rows = [first_rows(pairs)[shard] + row for shard, row in places]
    expected = stage1.embed_pictures(train.tokens(range(len(train)))).numpy()
    np.testing.assert_allclose(found.pictures[rows], expected, atol=1e-5)
    kept = [text for s in pairs.shards() for row in kept_texts(s.table["captions"]) for text in row]
    assert len(kept) == len(found.texts)
    words = stage1.embed_texts([text for _, text in kept]).numpy()
    np.testing.assert_allclose(found.texts, words, atol=1e-5)


def test_embeddings_name_what_they_were_made_from(embeddings, data, unbroken):
    digest = Checkpoint.open(str(unbroken)).digest
    for kind, parent in (("image", "features"), ("text", "pairs")):
        lineage = Dataset.open(str(embeddings / f"{kind}_embeddings")).manifest.lineage
        assert lineage.frozen == {"checkpoint": {"digest": digest, "stage": 1}}
        assert lineage.parents == (Dataset.open(str(data / parent)).as_parent,)


def test_the_same_once_more_elsewhere_has_the_same_digests(tmp_path, embeddings, data, unbroken):
    shutil.copytree(unbroken, tmp_path / "moved")
    run(
        *("embed", "--checkpoint", tmp_path / "moved", "--out", tmp_path / "again"),
        *("--features", data / "features", "--captions", data / "pairs", "--workers", 1),
    )
    for kind in ("image_embeddings", "text_embeddings"):
        again = Dataset.open(str(tmp_path / "again" / kind))
        assert again.digest == Dataset.open(str(embeddings / kind)).digest


def test_a_shard_that_is_embedded_once_more_is_the_same_bit_for_bit(embeddings, data, stage1):
    """By this process, with the one thread that a worker has."""
    sources = {"features": embed_shard_pictures, "pairs": embed_shard_texts}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for (source, embed), kind in zip(sources.items(), ("image", "text"), strict=True):
            made = Dataset.open(str(embeddings / f"{kind}_embeddings"))
            for number in made.records:
                table = embed(stage1, Dataset.open(str(data / source)), number, 64)
                assert table.equals(made.shard(number).table)
    finally:
        torch.set_num_threads(threads)


def test_what_was_taken_down_from_pairs_has_no_embeddings(tmp_path, data, stage1):
    """Before its features were made: then it is in the tombstones of `pairs` alone."""
    shutil.copytree(data / "pairs", tmp_path / "pairs")
    uids = Dataset.open(str(tmp_path / "pairs")).shard(0).table.column("uid").to_pylist()
    add_tombstones(Folder.at(tmp_path / "pairs"), [uids[3]])
    pairs, whole = Dataset.open(str(tmp_path / "pairs")), Dataset.open(str(data / "features"))
    features = features_without(whole, 3, tmp_path / "features")
    texts = embed_shard_texts(stage1, pairs, 0, 8).column("vectors")
    images = embed_shard_pictures(stage1, features, 0, 8).column("vectors")
    expected = [row != 3 for row in range(len(uids))]
    assert texts.is_valid().to_pylist() == expected
    assert images.is_valid().to_pylist() == expected


def features_without(features: Dataset, row: int, home: Path) -> Dataset:
    """The first shard as `viaduct features` makes it of pairs from which a row was taken down."""
    table = features.shard(0).table
    uids = table.column("uid").to_pylist()
    present = [number != row for number in range(len(uids))]
    tokens = table.column("tokens").combine_chunks().to_numpy_ndarray()[present]
    columns = {"uid": uids, **token_columns(tokens.astype("f4"), present, uids, "fp16")}
    lineage = features.manifest.lineage
    draft = Draft.begin(Folder.at(home), "features", table.schema, lineage)
    made = pa.table(columns, schema=table.schema)
    accounts = Account.all_kept(len(uids))
    commit_table(draft.folder, 0, made, draft.rows_per_batch, pictures=accounts)
    return draft.publish(draft.committed().values())


def test_new_captions_need_no_new_pictures(tmp_path, data, unbroken, refused):
    line = refused("embed", "--checkpoint", unbroken, "--out", tmp_path / "none")
    assert "features, captions: name at least one of them" in line
    assert not (tmp_path / "none").exists()


# Index and search


def test_pictures_are_found_by_words_and_by_picture(tmp_path, embeddings, data, unbroken):
    run(
        *("index", embeddings, "--pairs", data / "pairs", "--out", tmp_path / "index"),
        *("--checkpoint", unbroken),
    )
    shown = data / "source" / "images" / "0003.png"
    run(
        *("search", tmp_path / "index", "picture number 3", "picture of 5"),
        *("--image", shown, "--k", 5, "--save", tmp_path / "found"),
    )
    results = json.loads((tmp_path / "found" / "results.json").read_text())
    assert [one.get("text") for one in results["searches"]] == [
        *("picture number 3", "picture of 5"),
        None,
    ]
    for one in results["searches"]:
        assert [result["rank"] for result in one["results"]] == [1, 2, 3, 4, 5]
        assert all((tmp_path / "found" / result["file"]).exists() for result in one["results"])
    nearest = results["searches"][2]["results"][0]
    assert nearest["url"] == "images/0003.png"
    assert nearest["score"] > 0.99


def test_an_index_or_features_of_another_checkpoint_are_refused(
    tmp_path, embeddings, data, unbroken, other, refused
):
    made = Checkpoint.open(str(unbroken)).digest[:16]
    given = Checkpoint.open(str(other)).digest[:16]
    where = ("--pairs", data / "pairs", "--out", tmp_path / "index")
    line = refused("index", embeddings, *where, "--checkpoint", other)
    assert made in line
    assert given in line
    run("index", embeddings, *where)
    line = refused("search", tmp_path / "index", "a picture", "--checkpoint", other)
    assert given in line
    line = refused(*evaluation(embeddings, data, other))
    assert f"was made by checkpoint {made}, not by {other} ({given})" in line


# Evaluate


def evaluation(embeddings: Path, data: Path, checkpoint: Path, *options: object) -> list[object]:
    where = ("--features", data / "features", "--captions", data / "pairs")
    return ["evaluate", embeddings, "--checkpoint", checkpoint, *where, *options]


SHARES = {"value", "low", "high"}


def check_shares(recall: dict) -> None:
    for direction in ("picture_to_text", "text_to_picture"):
        found = recall[direction]
        assert set(found) == {"1", "5", "10"}
        for share in found.values():
            assert set(share) == SHARES
            assert 0 <= share["low"] <= share["value"] <= share["high"] <= 1
        assert found["1"]["value"] <= found["5"]["value"] <= found["10"]["value"]


@pytest.fixture(scope="module")
def result(tmp_path_factory, embeddings, data, unbroken) -> Callable[..., dict]:
    def result(*options: object) -> dict:
        out = tmp_path_factory.mktemp("evaluation") / "deep" / "evaluation.json"
        run(*evaluation(embeddings, data, unbroken, *options, "--out", out))
        return json.loads(out.read_text())

    return result


def test_recall_and_matching_are_measured_beside_chance_and_the_control(
    result, embeddings, data, unbroken, bert_folder
):
    found = result("--control", f"hf:{bert_folder}")
    pairs = Dataset.open(str(data / "pairs"))
    images = Dataset.open(str(embeddings / "image_embeddings"))
    texts = Dataset.open(str(embeddings / "text_embeddings"))
    held = read_embeddings(images, texts, split_rows(pairs, "test"))
    assert found["split"] == "test"
    assert found["num_pictures"] == len(held.pictures) > 5
    assert found["num_captions"] == len(held.texts) > 5
    assert found["checkpoint"] == Checkpoint.open(str(unbroken)).digest
    assert set(found["recall"]) == {"q_former", "ridge", "chance"}
    for recall in found["recall"].values():
        check_shares(recall)
    for direction in found["recall"]["chance"].values():
        assert all(share["low"] == share["value"] == share["high"] for share in direction.values())
    itm = found["itm"]
    assert set(itm) == {"accuracy", "prior", "num_pairs"}
    assert itm["accuracy"]["low"] <= itm["accuracy"]["value"] <= itm["accuracy"]["high"]
    assert itm["prior"] == pytest.approx(2 / 3)
    owned = len(Pairs(Dataset.open(str(data / "features")), pairs, "test"))
    assert itm["num_pairs"] == 3 * owned  # no two captions are equal here


def test_recall_is_that_of_a_slow_count(result, embeddings, data):
    pairs = Dataset.open(str(data / "pairs"))
    images = Dataset.open(str(embeddings / "image_embeddings"))
    texts = Dataset.open(str(embeddings / "text_embeddings"))
    held = read_embeddings(images, texts, split_rows(pairs, "test"))
    scores = np.einsum("nqe,me->nmq", held.pictures, held.texts).max(axis=2)
    told = [picture for picture in range(len(scores)) if (held.owners == picture).any()]
    firsts = [held.owners[scores[picture].argmax()] == picture for picture in told]
    found = result("--control", "none")["recall"]["q_former"]
    assert found["picture_to_text"]["1"]["value"] == pytest.approx(np.mean(firsts))
    owners = held.owners
    firsts = [scores[:, text].argmax() == owners[text] for text in range(len(owners))]
    assert found["text_to_picture"]["1"]["value"] == pytest.approx(np.mean(firsts))


def test_without_a_control_there_is_none(result):
    found = result("--control", "none", "--split", "validation")
    assert found["split"] == "validation"
    assert set(found["recall"]) == {"q_former", "chance"}
    assert result("--control", "none", "--split", "validation") == found


def test_an_evaluation_is_printed_as_a_table_or_as_json(embeddings, data, unbroken, capsys):
    capsys.readouterr()
    run(*evaluation(embeddings, data, unbroken, "--control", "none", "--json"))
    told = json.loads(capsys.readouterr().out)
    run(*evaluation(embeddings, data, unbroken, "--control", "none"))
    table = capsys.readouterr().out
    value = told["recall"]["q_former"]["picture_to_text"]["10"]["value"]
    assert f"{100 * value:.1f}" in table
    assert f"test: {told['num_pictures']} pictures, {told['num_captions']} captions" in table
    assert f"ITM accuracy {100 * told['itm']['accuracy']['value']:.1f}" in table


def test_an_empty_split_is_refused(tmp_path, embeddings, data, unbroken, refused):
    shutil.copytree(data / "pairs", tmp_path / "pairs")
    pairs = Dataset.open(str(tmp_path / "pairs"))
    for name in ("text_embeddings", "image_embeddings"):
        shutil.copytree(embeddings / name, tmp_path / "embeddings" / name)
    for shard in pairs.shards():
        rows = shard.table.select(["uid", "split"]).to_pylist()
        uids = [row["uid"] for row in rows if row["split"] == "test"]
        add_tombstones(Dataset.open(str(tmp_path / "embeddings/text_embeddings")).folder, uids)
    where = ("--captions", tmp_path / "pairs", "--control", "none")
    line = refused(*evaluation(tmp_path / "embeddings", data, unbroken, *where))
    assert f"{tmp_path}/pairs: its split 'test' has no caption" in line


def test_a_checkpoint_of_stage_2_evaluates_and_embeds_nothing(
    tmp_path, embeddings, data, stage2, refused
):
    assert "is of stage 2; stage 1 is needed" in refused(*evaluation(embeddings, data, stage2))
    command = ("embed", "--checkpoint", stage2, "--out", tmp_path, "--features", data / "features")
    assert "is of stage 2; stage 1 is needed" in refused(*command)
