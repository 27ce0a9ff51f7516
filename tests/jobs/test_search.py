"""Searches by both, for captions and with re-ranking, as a user runs them."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml

from indexes.retrieval import FoundPicture
from jobs.cli import main
from jobs.search_models import CachedTokens, CheckpointEmbedder, EncodedTokens
from jobs.search_queries import query_vectors
from model.checkpoint import Checkpoint
from model.checkpoint_models import load_stage1
from model.reranking import rerank_scores
from pipeline.dataset import Dataset
from pipeline.errors import DatasetError
from pipeline.loader import as_tensor
from pipeline.pictures import PictureConfig, read_picture
from pipeline.token_reader import TokenReader


@pytest.fixture
def search(searchable, capsys):
    """What `viaduct search` tells: `search(*arguments)`."""

    def search(*arguments: object) -> list[dict]:
        capsys.readouterr()
        assert main([str(word) for word in ("search", searchable, *arguments, "--json")]) == 0
        return json.loads(capsys.readouterr().out)["searches"]

    return search


def picture(data, number: int):
    return data / "source" / "images" / f"{number:04d}.png"


def test_a_text_and_a_picture_make_one_search(search, data, searchable, unbroken):
    files = [picture(data, 3), picture(data, 8)]
    found = search("picture of 5", "number", "--image", *files, "--together", "--k", 4)
    asked = [(one["text"], one["image"]) for one in found]
    assert asked == [(t, str(f)) for t in ("picture of 5", "number") for f in files]

    embedder = CheckpointEmbedder(Checkpoint.open(str(unbroken)))
    (own,) = embedder.pictures(embedder.tokens([read_picture(str(files[0]), PictureConfig())]))
    (text,) = embedder.texts(["picture of 5"])
    both = query_vectors(text, own)
    scored = []
    for shard in Dataset.open(str(searchable.parent / "embeddings/image_embeddings")).shards():
        columns = [shard.table.column(name).to_pylist() for name in ("uid", "vectors")]
        for uid, vectors in zip(*columns, strict=True):
            vectors = np.reshape(vectors, (4, 8))
            scored.append((float((both @ vectors.T).max()), uid.hex()))
    expected = sorted(scored, reverse=True)[:4]
    assert [one["uid"] for one in found[0]["results"]] == [uid for _, uid in expected]
    scores = [one["score"] for one in found[0]["results"]]
    assert scores == pytest.approx([score for score, _ in expected], abs=1e-4)


def test_captions_are_found_for_a_picture_and_printed(search, data, searchable, capsys):
    file = picture(data, 3)
    (found,) = search("--image", file, "--find", "captions", "--k", 3)
    assert list(found) == ["image", "captions"]
    assert [set(one) for one in found["captions"]] == [{"rank", "score", "uid", "text"}] * 3
    (again,) = search("--image", file, "--find", "captions", "--k", 3, "--rerank", 30)
    matches = [one["match"] for one in again["captions"]]
    assert matches == sorted(matches, reverse=True)
    assert main(["search", str(searchable), "--image", str(file), "--find", "captions"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"like {file}"
    assert lines[1].split() == ["rank", "score", "picture", "caption"]
    assert found["captions"][0]["text"] in lines[2]


def test_reranking_is_of_the_candidates_by_their_tokens(search, data, unbroken):
    text, features = "picture number 3", data / "features"
    (first,) = search(text, "--k", 8)
    (cached,) = search(text, "--k", 3, "--rerank", 8, "--features", features)
    (encoded,) = search(text, "--k", 3, "--rerank", 8)
    places = [(one["shard"], one["row"]) for one in first["results"]]
    tokens = as_tensor(TokenReader(Dataset.open(str(features))).read(places))
    stage1 = load_stage1(Checkpoint.open(str(unbroken)))
    told = [float(score) for (score,) in rerank_scores(stage1, tokens, [[text]] * 8)]
    order = sorted(range(8), key=lambda place: -told[place])[:3]
    assert [one["uid"] for one in cached["results"]] == [
        first["results"][place]["uid"] for place in order
    ]
    matches = [one["match"] for one in cached["results"]]
    assert matches == pytest.approx([told[place] for place in order], abs=1e-4)
    # Features are cached in half precision; what is encoded again is not.
    matches = [one["match"] for one in encoded["results"]]
    assert matches == pytest.approx([told[place] for place in order], abs=0.05)


def test_tokens_of_a_row_that_is_another_pictures_are_refused(data, unbroken):
    pairs, features = (Dataset.open(str(data / name)) for name in ("pairs", "features"))
    found = rows_of(pairs, 0)[:3]
    embedder = CheckpointEmbedder(Checkpoint.open(str(unbroken)))
    cached, encoded = CachedTokens(features)(found), EncodedTokens(pairs, embedder)(found)
    assert torch.allclose(cached.float(), encoded, atol=0.05)
    wrong = [FoundPicture(1.0, b"x" * 16, "", [], 0, 0)]
    for source in (CachedTokens(features), EncodedTokens(pairs, embedder)):
        with pytest.raises(DatasetError, match=f"row 0 is not picture {'78' * 16}"):
            source(wrong)


def rows_of(pairs: Dataset, number: int) -> list:
    uids = pairs.shard(number).table.column("uid").to_pylist()
    return [FoundPicture(1.0, uid, "", [], number, row) for row, uid in enumerate(uids)]


def test_what_cannot_be_searched_for_is_one_line(searchable, data, refused):
    file = picture(data, 3)

    def said(*arguments: object) -> str:
        return refused("search", searchable, *arguments)

    assert "together: give a text and a picture" in said("a", "--together")
    assert "captions are found for picture files" in said("a", "--find", "captions")
    assert "rerank: 5 is less than k=10" in said("a", "--rerank", 5)
    assert "have no text to be matched with" in said("--image", file, "--rerank", 20)
    assert "holds 'pairs', but 'features' is needed" in said(
        "a", "--rerank", 20, "--features", data / "pairs"
    )


def test_index_remembers_the_features_that_its_vectors_were_made_of(
    searchable, data, unbroken, tmp_path, rename_encoder, refused, capsys
):
    made = ("index", searchable.parent / "embeddings", "--pairs", data / "pairs")
    made += ("--checkpoint", unbroken, "--out", tmp_path / "index")
    shutil.copytree(data / "features", tmp_path / "others")
    rename_encoder(tmp_path / "others")
    line = refused(*made, "--features", tmp_path / "others")
    assert f"image_embeddings was not made of {tmp_path / 'others'}" in line
    assert main([str(word) for word in (*made, "--features", data / "features")]) == 0
    remembered = yaml.safe_load((tmp_path / "index" / "config.yaml").read_text())
    assert remembered["features"] == str(data / "features")
    shutil.rmtree(tmp_path / "others")
    capsys.readouterr()
    asked = ("search", tmp_path / "index", "picture number 3", "--rerank", 12, "--json")
    assert main([str(word) for word in asked]) == 0
    (found,) = json.loads(capsys.readouterr().out)["searches"]
    assert all("match" in one for one in found["results"])
