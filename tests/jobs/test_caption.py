"""Captions and answers from checkpoints of both stages, of picture files and of features.

The checkpoints were trained on features of a timm ViT with random weights (`data`, `unbroken`).
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from jobs.cli import main
from model.checkpoint import Checkpoint
from model.checkpoint_frozen import load_encoder_of, load_stage2
from model.checkpoint_models import load_stage1
from model.generation.settings import GenerationConfig
from model.generation.stage1 import write_captions
from model.generation.stage2 import write_texts
from pipeline.dataset import Dataset, decode_row
from pipeline.loader import as_tensor
from pipeline.token_reader import ShardTokens
from pipeline.tombstones import add_tombstones

pytestmark = pytest.mark.usefixtures("ray_session")

QUESTION = ("--question", "what colour is the boat?")


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def t5(tmp_path_factory, stage2_command, t5_folder, rank_here) -> Path:
    """Two steps of stage 2 with a T5."""
    out = tmp_path_factory.mktemp("t5") / "stage2"
    options = ("--language-model", f"hf:{t5_folder}", "--steps", 2)
    with rank_here():
        run(*stage2_command(out, *options, "--validate-every", 2, "--checkpoint-every", 2))
    return out


@pytest.fixture(scope="module")
def stage1(unbroken):
    return load_stage1(Checkpoint.open(str(unbroken)))


@pytest.fixture(scope="module")
def pictures(data) -> list[Path]:
    return [data / "source" / "images" / f"{number:04d}.png" for number in (1, 2, 3, 4, 5)]


@pytest.fixture
def printed(capsys):
    """Runs a command with --json; returns what it prints."""

    def printed(*command: object) -> dict:
        capsys.readouterr()
        run(*command, "--json")
        return json.loads(capsys.readouterr().out)

    return printed


def tokens_of(checkpoint: Path, data: Path, pictures: list[Path]) -> torch.Tensor:
    """Image tokens of source pictures, as `features` would have made them, but in float32."""
    encoder = load_encoder_of(Checkpoint.open(str(checkpoint)))
    by_url = {
        row["url"]: (shard, number)
        for shard in Dataset.open(str(data / "raw")).shards()
        for number, row in enumerate(shard.table.select(["url"]).to_pylist())
    }
    shown = [decode_row(*by_url[f"images/{picture.name}"]) for picture in pictures]
    return encoder(torch.stack([encoder.transform()(picture) for picture in shown]))


def rows_of(data: Path, split: str | None = None) -> list[tuple[str, str, torch.Tensor]]:
    """Uid, URL and cached image tokens of all pictures, or of one split."""
    features = Dataset.open(str(data / "features"))
    rows = []
    for number, shard in enumerate(Dataset.open(str(data / "pairs")).shards()):
        tokens = ShardTokens(features.shard(number), features.manifest.rows_per_batch)
        for row, one in enumerate(shard.table.select(["uid", "url", "split"]).to_pylist()):
            if split in (None, one["split"]):
                rows.append((one["uid"].hex(), one["url"], as_tensor(tokens.read([row]))[0]))
    return rows


# Captions of stage 1


def test_stage_1_writes_captions_with_its_own_head(unbroken, data, pictures, stage1, printed):
    command = ("caption", "--checkpoint", unbroken, *pictures)
    told = printed(*command, "--batch-size", 2)
    assert told["checkpoint"] == Checkpoint.open(str(unbroken)).digest
    assert told["stage"] == 1
    assert [one["picture"] for one in told["captions"]] == [str(path) for path in pictures]
    expected = write_captions(stage1, tokens_of(unbroken, data, pictures), GenerationConfig())
    assert [one["caption"] for one in told["captions"]] == [its[0].text for its in expected]
    assert printed(*command) == told


def test_what_is_drawn_depends_on_the_seed_and_not_on_the_batches(unbroken, t5, pictures, printed):
    for checkpoint in (unbroken, t5):
        command = ("caption", "--checkpoint", checkpoint, *pictures, "--method", "nucleus")
        command += ("--top-p", 0.95, "--min-tokens", 2, "--max-tokens", 8)
        first, again = (printed(*command, "--batch-size", size) for size in (2, 5))
        assert first == again
        assert printed(*command, "--seed", 1)["captions"] != first["captions"]


# Captions of stage 2


@pytest.mark.parametrize(("name", "prompt"), [("stage2", "picture"), ("t5", "a photo of")])
def test_stage_2_writes_captions_with_its_language_model(
    request, data, pictures, printed, tmp_path, name, prompt
):
    """After the prompt that it was trained with; a T5 that had none goes on from the paper's."""
    folder = request.getfixturevalue(name)
    out = tmp_path / "new" / "captions.json"
    lengths = ("--min-tokens", 2, "--max-tokens", 7)
    command = ("caption", "--checkpoint", folder, *pictures, *lengths)
    told = printed(*command, "--batch-size", 2, "--out", out)
    assert json.loads(out.read_text()) == told
    assert told["checkpoint"] == Checkpoint.open(str(folder)).digest
    assert told["stage"] == 2
    stage2, language = load_stage2(Checkpoint.open(str(folder)))
    tokens = tokens_of(folder, data, pictures)
    config = GenerationConfig(min_tokens=2, max_tokens=7)
    expected = write_texts(stage2, language, tokens, prompt, config)
    assert [[one["caption"]] for one in told["captions"]] == expected
    others = ("number", "red boat", "of a", "photo photo photo", "a")
    found = {other: write_texts(stage2, language, tokens, other, config) for other in others}
    other = next(other for other, texts in found.items() if texts != expected)
    told = printed(*command, "--prompt", other)
    assert [[one["caption"]] for one in told["captions"]] == found[other]


def test_several_captions_of_a_picture_stand_beside_the_best(stage2, pictures, printed, capsys):
    command = ("caption", "--checkpoint", stage2, *pictures[:2], "--num-beams", 4)
    told = printed(*command, "--num-captions", 3)["captions"]
    best = printed(*command)["captions"]
    for one, alone in zip(told, best, strict=True):
        assert len(set(one["captions"])) == 3
        assert one["caption"] == one["captions"][0] == alone["caption"]
    run(*command, "--num-captions", 3)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{one['picture']}\t{text}" for one in told for text in one["captions"]]


# Answers


@pytest.mark.parametrize("name", ["stage2", "t5"])
def test_an_answer_goes_on_from_the_question(request, data, pictures, printed, tmp_path, name):
    folder = request.getfixturevalue(name)
    told = printed(
        *("answer", "--checkpoint", folder, *QUESTION, *pictures, "--out", tmp_path / "a.json"),
        *("--num-beams", 3, "--max-tokens", 8),
    )
    assert json.loads((tmp_path / "a.json").read_text()) == told
    assert told["question"] == "what colour is the boat?"
    stage2, language = load_stage2(Checkpoint.open(str(folder)))
    expected = write_texts(
        *(stage2, language, tokens_of(folder, data, pictures)),
        "Question: what colour is the boat? Answer:",
        GenerationConfig(num_beams=3, min_tokens=2, max_tokens=8),
    )
    assert [[one["answer"]] for one in told["answers"]] == expected
    assert all(text for (text,) in expected)


# Pictures from features


def test_features_are_captioned_as_they_are_cached(unbroken, data, stage1, printed):
    told = printed("caption", "--checkpoint", unbroken, "--features", data / "features")["captions"]
    rows = rows_of(data)
    assert [one["uid"] for one in told] == [one["picture"] for one in told]
    assert [one["uid"] for one in told] == [uid for uid, _, _ in rows]
    tokens = torch.stack([token for _, _, token in rows])
    expected = write_captions(stage1, tokens, GenerationConfig())
    assert [one["caption"] for one in told] == [its[0].text for its in expected]


def test_pairs_beside_features_tell_urls_and_splits(stage2, data, printed):
    where = ("--features", data / "features", "--pairs", data / "pairs", "--split", "test")
    lengths = ("--min-tokens", 2, "--max-tokens", 8)
    command = ("--checkpoint", stage2, *where, "--num-beams", 1, *lengths)
    rows = rows_of(data, "test")
    assert 2 < len(rows) < len(rows_of(data))
    answers = printed("answer", *QUESTION, *command)["answers"]
    assert [(one["uid"], one["picture"]) for one in answers] == [row[:2] for row in rows]
    some = printed("answer", *QUESTION, *command, "--limit", 2)["answers"]
    assert some == answers[:2]
    captions = printed("caption", *command)["captions"]
    own, language = load_stage2(Checkpoint.open(str(stage2)))
    tokens = torch.stack([token for _, _, token in rows])
    config = GenerationConfig(num_beams=1, min_tokens=2, max_tokens=8)
    for told, prompt in (
        ([one["answer"] for one in answers], "Question: what colour is the boat? Answer:"),
        ([one["caption"] for one in captions], "picture"),  # what it was trained with
    ):
        expected = write_texts(own, language, tokens, prompt, config)
        assert [[text] for text in told] == expected


def test_what_was_taken_down_has_no_caption(tmp_path, unbroken, data, printed):
    shutil.copytree(data / "pairs", tmp_path / "pairs")
    uids = [bytes.fromhex(uid) for uid, _, _ in rows_of(data)]
    add_tombstones(Dataset.open(str(tmp_path / "pairs")).folder, uids[1:3])
    where = ("--features", data / "features", "--pairs", tmp_path / "pairs", "--limit", 3)
    told = printed("caption", "--checkpoint", unbroken, *where)["captions"]
    assert [bytes.fromhex(one["uid"]) for one in told] == [uids[0], *uids[3:5]]


# What is printed, and what is refused


def test_texts_are_printed_a_line_a_picture(unbroken, stage2, pictures, printed, capsys):
    for job, *options in (("caption", unbroken), ("answer", stage2, *QUESTION)):
        command = (job, "--checkpoint", *options, *pictures)
        told = printed(*command)[f"{job}s"]
        run(*command)
        lines = capsys.readouterr().out.splitlines()
        assert lines == [f"{one['picture']}\t{one[job]}" for one in told]


def test_captions_that_cannot_be_written_are_one_line(
    unbroken, stage2, pictures, data, tmp_path, refused
):
    (tmp_path / "no.jpg").write_text("no picture")
    one = ("--checkpoint", unbroken, pictures[0])
    rows = ("--checkpoint", unbroken, "--features", data / "features")
    wrong: dict[str, tuple[object, ...]] = {
        "pictures: name at least one file, or --features": ("--checkpoint", unbroken),
        "pictures: name files or --features, not both": (*rows, pictures[0]),
        "no.jpg": ("--checkpoint", unbroken, tmp_path / "no.jpg"),
        "gone.jpg": ("--checkpoint", unbroken, tmp_path / "gone.jpg"),
        "top_p: 0.0 is not in (0, 1]": (*one, "--top-p", 0.0),
        "max_tokens: 40": (*one, "--max-tokens", 40),
        "max_tokens: 4 queries and 100 tokens of text are more than the 64 positions of hf:": (
            *("--checkpoint", stage2, pictures[0], "--prompt", "", "--max-tokens", 101),
        ),
        "batch_size: 0 is not positive": (*one, "--batch-size", 0),
        "limit: 0 is not positive": (*rows, "--limit", 0),
        "limit: goes with --features": (*one, "--limit", 1),
        "pairs: goes with --features": (*one, "--pairs", data / "pairs"),
        "split: to take 'test' alone name --pairs": (*rows, "--split", "test"),
        "prompt: is for stage 2": (*one, "--prompt", "a"),
        "source: no dataset": ("--checkpoint", unbroken, "--features", data / "source"),
        f"{tmp_path}: no checkpoint": ("--checkpoint", tmp_path, pictures[0]),
        f"out: {tmp_path}: ": (*one, "--out", tmp_path),
    }
    if not torch.cuda.is_available():
        wrong["device: there is no GPU"] = (*one, "--device", "cuda")
    for message, command in wrong.items():
        assert message in refused("caption", *command)


def test_answers_that_cannot_be_given_are_one_line(unbroken, stage2, t5, pictures, refused):
    line = refused("answer", "--checkpoint", unbroken, *QUESTION, pictures[0])
    assert "is of stage 1, whose caption head answers no questions" in line
    command = ("answer", "--checkpoint", stage2, pictures[0])
    assert "question: is empty" in refused(*command, "--question", " ")
    assert "question" in refused(*command)
    long = ("--question", "number " * 70)
    assert "max_tokens: 4 queries and" in refused(*command, *long)
    assert "pictures: name at least one file" in refused(*command[:-1], *QUESTION)


def test_features_of_another_encoder_are_refused(
    tmp_path, unbroken, stage2, data, refused, rename_encoder
):
    shutil.copytree(data / "features", tmp_path / "features")
    rename_encoder(tmp_path / "features")
    for job, *options in (("caption", unbroken), ("answer", stage2, *QUESTION)):
        command = (job, "--checkpoint", *options, "--features", tmp_path / "features")
        assert "has features of another encoder than" in refused(*command)


def test_a_language_model_that_has_changed_is_refused(
    tmp_path, stage2_command, t5_folder, pictures, rank_here, refused
):
    language = tmp_path / "t5"
    shutil.copytree(t5_folder, language)
    out = tmp_path / "stage2"
    options = ("--language-model", f"hf:{language}", "--steps", 1, "--log-every", 1)
    with rank_here():
        run(*stage2_command(out, *options))
    weights = language / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    line = refused("answer", "--checkpoint", out, *QUESTION, pictures[0])
    assert f"was trained for hf:{language} with weights_digest" in line
