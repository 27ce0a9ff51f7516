"""A location names the same files wherever they lie, and they say the same however compressed."""

import pyarrow as pa
import pytest

from pipeline.errors import ConfigError
from pipeline.source_files import SourceFile, files_in, find
from pipeline.storage import Folder

NAMES = ["a/x1.csv", "a/x2.csv", "a/y1.csv", "a/.x.csv", "b/x1.csv", "b/c/x1.csv", "x1.csv"]


@pytest.fixture(params=["", "file://"], ids=["path", "uri"])
def root(request, tmp_path) -> str:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return f"{request.param}{tmp_path}"


def names(found: Folder | list[SourceFile], root: str) -> list[str]:
    assert isinstance(found, list)
    assert all(file.stream().read().decode() in NAMES for file in found)
    return [str(file).removeprefix(root.removeprefix("file://") + "/") for file in found]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a/x2.csv", ["a/x2.csv"]),
        ("a/*", ["a/x1.csv", "a/x2.csv", "a/y1.csv"]),
        ("*/x1.csv", ["a/x1.csv", "b/x1.csv"]),
        ("*/*/*", ["b/c/x1.csv"]),
        ("[ab]/x[12]*", ["a/x1.csv", "a/x2.csv", "b/x1.csv"]),
    ],
)
def test_wildcards_name_files_in_sorted_order(root, pattern, expected):
    assert names(find(f"{root}/{pattern}"), root) == expected


def test_a_folder_is_no_file_and_lists_its_own(root):
    found = find(f"{root}/a")
    assert isinstance(found, Folder)
    assert [file.name for file in files_in(found)] == ["x1.csv", "x2.csv", "y1.csv"]


@pytest.mark.parametrize("pattern", ["*.tsv", "no/*.csv", "a*"])
def test_wildcards_that_match_no_file_are_named(root, pattern):
    with pytest.raises(ConfigError) as caught:
        find(f"{root}/{pattern}")
    assert str(caught.value) == f"{root}/{pattern}: no file matches"


def test_a_question_mark_stands_for_a_letter_in_a_path_and_wildcards_may_be_names(tmp_path):
    for name in ("x1.csv", "x[1].csv", "x?.csv"):
        (tmp_path / name).touch()
    assert [file.name for file in find(f"{tmp_path}/?1.csv")] == ["x1.csv"]
    assert [file.name for file in find(f"{tmp_path}/x[1].csv")] == ["x[1].csv"]
    assert [file.name for file in find(f"{tmp_path}/x?.csv")] == ["x?.csv"]


def test_a_relative_path_is_one_of_this_folder(tmp_path, monkeypatch):
    (tmp_path / "a.csv").touch()
    monkeypatch.chdir(tmp_path)
    assert [str(file) for file in find("*.csv")] == [f"{tmp_path}/a.csv"]


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_a_file_says_the_same_however_it_is_compressed(tmp_path, compression):
    content = bytes(range(256)) * 9000  # more than one read
    (tmp_path / "a.csv").write_bytes(content)
    with pa.output_stream(tmp_path / f"a.csv.{compression}") as stream:  # by its name
        stream.write(content)
    plain, packed = find(f"{tmp_path}/a.csv*")
    assert (tmp_path / packed.name).stat().st_size < len(content) / 9
    assert packed.stream().read() == content
    assert packed.digest() == plain.digest()
    assert packed.format == plain.format == ".csv"


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_a_compressed_file_that_is_damaged_or_cut_is_named(tmp_path, compression):
    path = tmp_path / f"a.csv.{compression}"
    with pa.output_stream(path) as stream:
        stream.write(bytes(range(256)) * 9000)
    whole = path.read_bytes()
    for damaged in (whole[:-9], b"no such thing", b"\xff" * 50 + whole[50:]):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError) as caught:
            find(str(path))[0].digest()
        assert str(caught.value).startswith(f"{path}: cannot be read: ")
