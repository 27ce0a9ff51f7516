"""From a trained checkpoint to answers: embed, index, search.

The checkpoint was trained on features of a timm ViT with random weights (`data`, `unbroken`).
"""

import json
import shutil
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
from pipeline.embeddings import first_rows, read_embeddings
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
    where = ("--features", data / "features", "--captions", data / "pairs")
    line = refused("evaluate", embeddings, "--checkpoint", other, *where)
    assert f"was made by checkpoint {made}, not by {other} ({given})" in line


def test_a_checkpoint_of_stage_2_evaluates_and_embeds_nothing(
    tmp_path, embeddings, data, stage2, refused
):
    where = ("--features", data / "features", "--captions", data / "pairs")
    line = refused("evaluate", embeddings, "--checkpoint", stage2, *where)
    assert "is of stage 2; stage 1 is needed" in line
    command = ("embed", "--checkpoint", stage2, "--out", tmp_path, "--features", data / "features")
    assert "is of stage 2; stage 1 is needed" in refused(*command)
