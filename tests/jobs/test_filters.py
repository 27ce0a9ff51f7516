"""`--filters` of ingest and curate: what is dropped and rejected is counted."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from jobs.cli import main
from pipeline.accounting import Account
from pipeline.dataset import Dataset
from pipeline.verify import verify

pytestmark = pytest.mark.usefixtures("ray_session")

CAPTIONS = {
    "a red boat": None,
    "IMG_1234.JPG": "rejected:file_name",
    "http://example.com/cat": "rejected:url",
    "click to enlarge": "rejected:boilerplate",
    "?": "rejected:too_short",
    "1234 5678 9": "rejected:few_letters",
    "w" * (1 << 20): "rejected:too_long",
    "\x00\x01": "rejected:empty",
    "\u732b": "rejected:too_short",
}


@pytest.fixture
def source(tmp_path):
    """A picture for each of the captions, 51 more that share one, and four that show nothing."""
    folder = tmp_path / "source"
    folder.mkdir()
    rows = []

    def add(picture: Image.Image, captions: object, ending: str = "png", **options) -> None:
        file = f"{len(rows)}.{ending}"
        picture.save(folder / file, **options)
        rows.append({"file": file, "captions": captions})

    def noise(seed: int, *shape: int) -> Image.Image:
        pixels = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    for text in CAPTIONS:
        add(noise(len(rows), 32, 40), [text, "fine words"])
    for _ in range(51):
        add(noise(len(rows), 32, 40), ["gramastar"])
    add(noise(51, 32, 40), ["gramastar"])  # a picture that is here already
    add(noise(900, 31, 40), ["small"])
    add(noise(901, 32, 161), ["long"])
    add(Image.new("RGB", (40, 40), (9, 9, 9)), None)
    moving = [noise(n, 40, 40) for n in (902, 903)]
    add(moving[0], ["moving", None], "gif", save_all=True, append_images=moving[1:])
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def test_pictures_and_captions_are_dropped_by_reason_and_add_up(tmp_path, source):
    run("ingest", source, "--out", tmp_path / "raw")
    raw = Dataset.open(str(tmp_path / "raw"))
    reasons = ("animated", "one_colour", "too_elongated", "too_small")
    dropped = {f"dropped:{reason}": 1 for reason in reasons}
    assert raw.manifest.pictures == Account(65, 61, dropped)
    assert raw.manifest.captions.num_in == 2 * len(CAPTIONS) + 52 + 4
    assert raw.manifest.captions.dropped["picture:dropped:animated"] == 2

    run("curate", tmp_path / "raw", "--out", tmp_path / "pairs")
    pairs = Dataset.open(str(tmp_path / "pairs"))
    assert list(verify(pairs)) == []
    captions = pairs.manifest.captions
    assert captions.num_in == raw.manifest.captions.num_kept
    expected = Counter(reason for reason in CAPTIONS.values() if reason)
    assert captions.dropped == expected | {"rejected:recurring": 51, "duplicate": 1}
    rows = [row for shard in pairs.shards() for row in shard.table.to_pylist()]
    assert len(rows) == 60
    found = {c["text"]: c["status"] for row in rows for c in row["captions"]}
    assert found["a red boat"] == found["fine words"] == "kept"
    assert max(map(len, found)) <= 10_000


def test_captions_in_other_languages_are_rejected_and_an_unknown_one_is_told(
    tmp_path, source, capsys
):
    raw, pairs = tmp_path / "raw", tmp_path / "pairs"
    run("ingest", source, "--out", raw)
    wrong = ["curate", str(raw), "--out", str(pairs), "--languages", "en", "english"]
    assert main(wrong) == 2
    assert "languages: 'english' is none of" in capsys.readouterr().err.splitlines()[-1]
    run("curate", raw, "--out", pairs, "--filters", "none", "--languages", "ru")
    captions = Dataset.open(str(pairs)).manifest.captions
    other = {"duplicate": 1, "rejected:empty": 1, "rejected:too_long": 1}
    assert captions == Account(70, 0, {**other, "rejected:language": 67})


def test_without_filters_only_what_cannot_be_a_caption_is_rejected(tmp_path, source):
    run("ingest", source, "--out", tmp_path / "raw", "--filters", "none")
    raw = Dataset.open(str(tmp_path / "raw"))
    assert raw.manifest.pictures == Account(65, 65)
    run("curate", tmp_path / "raw", "--out", tmp_path / "pairs", "--filters", "none")
    pairs = Dataset.open(str(tmp_path / "pairs"))
    expected = {"duplicate": 1, "rejected:empty": 2, "rejected:too_long": 1}
    assert dict(pairs.manifest.captions.dropped) == expected
    # The numbers of the sets, and not their names alone, are in the lineage.
    assert pairs.manifest.lineage.config["filters"] == []
