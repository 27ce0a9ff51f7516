"""Index as a user runs it, on a small checkpoint with random weights."""

import json
import shutil

import pytest
import yaml

from indexes import building
from indexes.retrieval import RetrievalIndex
from indexes.storage import begin
from jobs.cli import main
from pipeline.claim import claimed
from pipeline.storage import Folder


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def test_the_same_command_again_changes_nothing(made, capsys):
    before = (made.home / "index" / "index.json").read_bytes()
    capsys.readouterr()
    run(*made.command, "--checkpoint", made.home / "stage1")
    assert (made.home / "index" / "index.json").read_bytes() == before
    assert (
        "index of 11 pictures with 4 vectors each (exact) and 10 captions"
        in capsys.readouterr().out
    )


def test_the_run_is_kept_beside_the_index_with_places_that_hold_anywhere(
    made, tmp_path, monkeypatch
):
    monkeypatch.chdir(made.home)
    run(
        "index", "embeddings", "--pairs", "pairs", "--out", tmp_path / "i", "--checkpoint", "stage1"
    )
    config = yaml.safe_load((tmp_path / "i" / "config.yaml").read_text())
    assert config["pairs"] == str(made.home / "pairs")
    assert config["checkpoint"] == str(made.home / "stage1")
    (logged,) = json.loads((tmp_path / "i" / "run.json").read_text())["runs"]
    assert logged["ended"]
    assert [phase["phase"] for phase in logged["phases"]] == ["index"]
    run("index", "--config", tmp_path / "i" / "config.yaml", "--out", tmp_path / "again")
    digests = [
        json.loads((folder / "index.json").read_text())["digest"]
        for folder in (tmp_path / "i", tmp_path / "again", made.home / "index")
    ]
    assert len(set(digests)) == 1


def test_a_build_that_was_killed_goes_on_with_the_same_command(
    made, tmp_path, monkeypatch, refused
):
    command = [*made.command[:-1], tmp_path / "index"]

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(building, "publish", killed)
        assert main([str(word) for word in command]) == 130
    said = refused("search", tmp_path / "index", "a red boat")
    assert said.endswith("index: not finished; run its job again")
    run(*command)
    one, other = (tmp_path / "index" / "index.json", made.home / "index" / "index.json")
    assert one.read_bytes() == other.read_bytes()


def test_a_second_job_in_the_same_folder_is_refused(made, tmp_path, refused):
    folder = Folder.at(tmp_path / "index")
    with claimed(folder, "viaduct x"):
        said = refused(*made.command[:-1], tmp_path / "index")
    assert "another job is writing here (viaduct x, process" in said


def test_an_index_of_pictures_alone(made, tmp_path, capsys, refused, searched):
    images = made.home / "embeddings" / "image_embeddings"
    run("index", images, "--pairs", made.home / "pairs", "--out", tmp_path / "index")
    assert "and 0 captions" in capsys.readouterr().out
    found = searched(tmp_path / "index", "a red boat", "--checkpoint", made.home / "stage1")
    assert len(found["searches"][0]["results"]) == 10
    said = refused("search", tmp_path / "index", "a red boat")
    assert "remembers no checkpoint; name it with --checkpoint" in said


@pytest.mark.parametrize("kind", ["hnsw", "ivf", "ivfpq"])
def test_other_kinds_are_asked_for_by_name(made, tmp_path, capsys, kind, refused, searched):
    exact = searched(made.home / "index", "a red boat", "--k", 3)
    options = ("--kind", kind, "--vectors-per-picture", 2, "--checkpoint", made.home / "stage1")
    run(*made.command[:-1], tmp_path / "index", *options)
    assert f"11 pictures with 4 vectors each ({kind}, recall 1.000)" in capsys.readouterr().out
    found = searched(tmp_path / "index", "a red boat", "--k", 3)
    assert found["searches"] == exact["searches"]
    said = refused(*made.command[:-1], tmp_path / "index", *options, "--kind", "exact")
    assert f'config.kind: "{kind}" there, "exact" now' in said
    assert "target_recall: 2.0 is not" in refused(*made.command, "--target-recall", 2)
    assert "threads: 0 is not positive" in refused(*made.command, "--threads", 0)


def test_several_index_shards_are_built_by_ray(made, tmp_path, ray_session, searched, copy):
    exact = searched(made.home / "index", "a red boat", "--image", made.paths[7])
    options = ("--shard-pictures", 6, "--kind", "ivf", "--checkpoint", made.home / "stage1")
    run(*made.command[:-1], tmp_path / "index", *options)
    assert (tmp_path / "index" / "00001" / "picture_index.faiss").exists()
    found = searched(tmp_path / "index", "a red boat", "--image", made.paths[7])
    assert found["searches"] == exact["searches"]
    # Killed when the first was made, it makes the second.
    index = RetrievalIndex.open(str(tmp_path / "index"))
    begin(Folder.at(tmp_path / "again"), index.manifest.lineage)
    shutil.copytree(tmp_path / "index" / "00000", tmp_path / "again" / "00000")
    shutil.copy(tmp_path / "index" / "00000.json", tmp_path / "again")
    run(*made.command[:-1], tmp_path / "again", *options)
    assert (tmp_path / "again" / "index.json").read_bytes() == (
        tmp_path / "index" / "index.json"
    ).read_bytes()


def test_what_index_cannot_use_is_one_line(made, tmp_path, refused):
    def said(*changes: object) -> str:
        return refused(*made.command[:4], "--out", tmp_path / "index", *changes)

    other = said("--checkpoint", made.home / "other")
    assert f"was made with checkpoint {made.checkpoint.digest[:16]}, not with" in other
    assert str(made.home / "other") in other
    assert "nowhere: no such folder" in said("--checkpoint", tmp_path / "nowhere")
    assert "'pairs' is needed" in said("--pairs", made.home / "embeddings" / "image_embeddings")
    assert "holds no image_embeddings" in refused(
        "index", made.home, "--pairs", made.home / "pairs", "--out", tmp_path / "index"
    )
    assert "no picture of split 'validation'" in said("--split", "validation")
    assert "holds 'pairs', but 'image_embeddings' is needed" in refused(
        *("index", made.home / "pairs", "--pairs", made.home / "pairs", "--out", tmp_path / "i"),
    )
    fewer = made.make_pairs(tmp_path / "fewer", made.paths[:8])
    assert "do not match: shard 00001 has" in said("--pairs", fewer.folder)
    assert not (tmp_path / "index" / "index.json").exists()


def test_embeddings_that_are_not_finished_are_refused(made, refused, copy):
    home = copy("embeddings")
    (home / "embeddings" / "text_embeddings" / "dataset.json").unlink()
    said = refused(
        "index", home / "embeddings", "--pairs", made.home / "pairs", "--out", home / "i"
    )
    assert "text_embeddings: no dataset" in said


def test_another_split_in_the_same_folder_is_refused(made, refused):
    said = refused(*made.command, "--split", "test")
    assert 'config.split: "all" there, "test" now' in said
