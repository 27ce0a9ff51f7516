"""Annotation files are read as their formats say, or named with the place that is wrong."""

import gzip
import json
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.sources import open_source
from pipeline.uids import uid_of
from pipeline.url_tables import SourceColumns

PLAIN = SourceColumns()


def coco() -> dict:
    """Pictures and captions interleaved, one picture without a caption."""
    return {
        "info": {"year": 2017},
        "licenses": [],
        "images": [
            {"id": 42, "file_name": "b.jpg", "coco_url": "http://a/b.jpg", "height": 4},
            {"id": 7, "file_name": "sub/a.jpg"},
            {"id": 8, "file_name": "c.jpg"},
        ],
        "annotations": [
            {"id": 9, "image_id": 7, "caption": "last id, first place"},
            {"id": 3, "image_id": 42, "caption": " a \ud83d\ude00\n"},
            {"id": 1, "image_id": 7, "caption": ""},
        ],
    }


def karpathy() -> dict:
    return {
        "dataset": "coco",
        "images": [
            {
                "filepath": "val2014",
                "filename": "b.jpg",
                "imgid": 0,
                "split": "test",
                "sentences": [{"raw": "One.", "tokens": ["one"]}, {"raw": "Two", "tokens": []}],
            },
            {"filename": "a.jpg", "split": "restval", "sentences": []},
        ],
    }


def rows_of(path: Path, picture_folder: str | None = None) -> list[dict]:
    source = open_source(str(path), PLAIN, picture_folder)
    return [row for table in source.tables() for row in table.to_pylist()]


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_a_picture_of_coco_is_one_row_with_its_captions_in_their_order(tmp_path):
    path = write(tmp_path / "captions.json", coco())
    assert rows_of(path) == [
        {"uid": uid_of("b.jpg"), "url": "b.jpg", "captions": [" a \U0001f600\n"]},
        {"uid": uid_of("sub/a.jpg"), "url": "sub/a.jpg", "captions": ["last id, first place", ""]},
        {"uid": uid_of("c.jpg"), "url": "c.jpg", "captions": []},
    ]


def test_a_picture_of_karpathy_is_one_row_with_its_sentences(tmp_path):
    path = write(tmp_path / "dataset_coco.json", karpathy())
    assert rows_of(path) == [
        {"uid": uid_of("val2014/b.jpg"), "url": "val2014/b.jpg", "captions": ["One.", "Two"]},
        {"uid": uid_of("a.jpg"), "url": "a.jpg", "captions": []},
    ]


def test_pictures_lie_beside_the_file_or_in_the_picture_folder(tmp_path):
    path = write(tmp_path / "captions.json", coco())
    (tmp_path / "train2017").mkdir()
    assert open_source(str(path), PLAIN).folder == tmp_path
    given = open_source(str(path), PLAIN, str(tmp_path / "train2017"))
    assert given.folder == tmp_path / "train2017"
    assert given.digest() == open_source(str(path), PLAIN).digest()
    assert rows_of(path, str(tmp_path / "train2017")) == rows_of(path)


def test_the_digest_is_of_the_content_and_not_of_the_place_or_its_compression(tmp_path):
    one = write(tmp_path / "one.json", coco())
    (tmp_path / "two.json.gz").write_bytes(gzip.compress(one.read_bytes()))
    other = coco()
    other["annotations"].reverse()
    paths = [one, tmp_path / "two.json.gz", write(tmp_path / "other.json", other)]
    digests = [open_source(str(path), PLAIN).digest() for path in paths]
    assert rows_of(paths[1]) == rows_of(one)
    assert digests[0] == digests[1] != digests[2]


def test_many_pictures_come_in_several_tables(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.annotations._ROWS", 7)
    images = [{"filename": f"{number}.jpg", "sentences": []} for number in range(20)]
    source = open_source(str(write(tmp_path / "k.json", {"images": images})), PLAIN)
    tables = [table.column("url").to_pylist() for table in source.tables()]
    assert [len(table) for table in tables] == [7, 7, 6]
    assert [name for table in tables for name in table] == [f"{number}.jpg" for number in range(20)]


def test_one_annotation_file_is_read_at_a_time(tmp_path):
    for name in ("a.json", "b.json"):
        write(tmp_path / name, coco())
    with pytest.raises(ConfigError, match=r"a\.json: is '\.json', which is read alone; name one"):
        open_source(f"{tmp_path}/*.json", PLAIN)


def test_half_a_surrogate_pair_is_replaced(tmp_path):
    content = karpathy()
    content["images"][0]["sentences"][0]["raw"] = "a\ud800b"
    assert rows_of(write(tmp_path / "k.json", content))[0]["captions"] == ["a?b", "Two"]


def changed(content: dict, key: str, value: object) -> dict:
    """The content with the last item of `images` or `annotations` changed in one key."""
    part, _, name = key.partition(".")
    last = content[part][-1]
    content[part][-1] = {**last, name: value}
    return content


MALFORMED = [
    (coco() | {"images": None}, r"the file.images is missing, not list"),
    (coco() | {"annotations": {}}, r"the file.annotations is dict, not list"),
    ([1], r"the file is list, not dict"),
    ({}, r"the file.images is missing, not list"),
    (changed(coco(), "images.id", "7"), r"images\[2\].id is str, not int"),
    (changed(coco(), "images.id", 42), r"images\[2\]: another picture has the id 42"),
    (changed(coco(), "images.file_name", None), r"images\[2\].file_name is missing, not str"),
    (changed(coco(), "annotations.image_id", 1), r"annotations\[2\]: no picture has the id 1"),
    (changed(coco(), "annotations.caption", None), r"annotations\[2\].caption is missing"),
    (coco() | {"annotations": [5]}, r"annotations\[0\] is int, not dict"),
    (changed(karpathy(), "images.filename", 5), r"images\[1\].filename is int, not str"),
    (changed(karpathy(), "images.sentences", None), r"images\[1\].sentences is missing"),
    (changed(karpathy(), "images.sentences", [{}]), r"images\[1\].sentences\[0\].raw is missing"),
]


@pytest.mark.parametrize(("content", "what"), MALFORMED, ids=[what for _, what in MALFORMED])
def test_what_is_wrong_is_named_with_its_place(tmp_path, content, what):
    path = write(tmp_path / "c.json", content)
    with pytest.raises(ConfigError, match=f"c.json: {what}.* or Karpathy's format is needed"):
        rows_of(path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[" * 100_000], ids=["", "{", "ff", "deep"]
)
def test_what_is_no_json_is_named(tmp_path, content):
    path = tmp_path / "c.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"c\.json: cannot be read: "):
        rows_of(path)


# Splits


def test_one_of_karpathys_splits_is_taken_alone(tmp_path):
    path = write(tmp_path / "k.json", karpathy())
    whole = open_source(str(path), PLAIN)
    assert whole.splits() == {"test": 1, "restval": 1}
    test = open_source(str(path), PLAIN, annotation_split="test")
    assert [url for t in test.tables() for url in t.column("url").to_pylist()] == ["val2014/b.jpg"]
    digests = {
        open_source(str(path), PLAIN, annotation_split=split).digest()
        for split in (None, "test", "restval")
    }
    assert len(digests) == 3


def test_a_split_that_is_not_there_is_named_with_those_that_are(tmp_path):
    for content, what in ((karpathy(), "there are restval, test"), (coco(), "have none")):
        path = write(tmp_path / "c.json", content)
        source = open_source(str(path), PLAIN, annotation_split="val")
        with pytest.raises(ConfigError, match=rf"c\.json: no picture of the split 'val'; .*{what}"):
            list(source.tables())
    assert open_source(str(path), PLAIN).splits() == {}
    (tmp_path / "a.csv").write_text("url,caption\n")
    with pytest.raises(ConfigError, match=r"annotation_split: .*a\.csv is no annotation file"):
        open_source(str(tmp_path / "a.csv"), PLAIN, annotation_split="test")
