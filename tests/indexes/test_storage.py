"""The folder of an index: a round trip on local disks and object stores, and every corruption."""

import json
from dataclasses import replace

import fsspec
import pyarrow.fs as pafs
import pytest

from indexes.building import build
from indexes.retrieval import RetrievalIndex
from indexes.storage import IndexManifest, begin, read_manifest
from pipeline.errors import ConfigError, DatasetError
from pipeline.storage import Folder


def make(folder: Folder, sources) -> RetrievalIndex:
    begin(folder, sources.lineage)
    build(folder, sources, lambda count: None)
    return RetrievalIndex.open(folder)


@pytest.fixture
def index(tmp_path, shared_family):
    return make(Folder.at(tmp_path / "index"), shared_family.sources())


def test_on_an_object_store_names_hold_digests_and_the_index_is_the_same(index, shared_family):
    memory = fsspec.filesystem("memory", skip_instance_cache=True)
    memory.store.clear()
    folder = Folder(pafs.PyFileSystem(pafs.FSSpecHandler(memory)), "/bucket/index")
    far = make(folder, shared_family.sources())
    assert far.digest == index.digest
    files = far.manifest.shards[0].files
    digest = files["pictures.arrow"].digest
    assert files["pictures.arrow"].file == f"00000/pictures-{digest[:16]}.arrow"
    assert set(folder.files()) == {"index.json", "00000.json"}
    assert {f"00000/{name}" for name in (folder / "00000").files()} == {
        entry.file for entry in files.values()
    }
    query = shared_family.pictures[:3]
    assert far.search_pictures(query, 5) == index.search_pictures(query, 5)
    assert far.search_captions(query, 5) == index.search_captions(query, 5)
    assert RetrievalIndex.open(folder, verify=True).digest == index.digest


def test_a_manifest_comes_back_as_it_was_written(index):
    value = json.loads(json.dumps(index.manifest.to_json()))
    assert IndexManifest.from_json(value, "x") == index.manifest
    assert read_manifest(index.folder) == index.manifest


def leaves(value, path=()):
    """Every leaf of a JSON value with the way to it."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        if isinstance(item, (dict, list)) and item:
            yield from leaves(item, (*path, key))
        else:
            yield (*path, key)


def test_no_field_of_index_json_can_be_changed_or_lost(index):
    text = json.dumps(index.manifest.to_json())
    ways = list(leaves(json.loads(text)))
    assert len(ways) > 20
    for way in ways:
        # Names of files are in no digest: on an object store they differ.
        for change in ("lose", "change")[: 1 if way[-1] == "file" else 2]:
            value = parent = json.loads(text)
            for key in way[:-1]:
                parent = parent[key]
            if change == "lose":
                del parent[way[-1]]
            else:
                parent[way[-1]] = 12345
            with pytest.raises(DatasetError, match=r"^x: "):
                IndexManifest.from_json(value, "x")


def test_index_json_that_is_no_json_is_named(index):
    index.folder.publish("index.json", b"{")
    with pytest.raises(DatasetError, match=r"index/index\.json: not JSON"):
        RetrievalIndex.open(index.folder)


FILES = ["pictures.arrow", "picture_vectors.f32", "caption_vectors.f32"]


def path_of(index: RetrievalIndex, name: str) -> str:
    return index.manifest.shards[0].files[name].file


def with_files(index: RetrievalIndex, **changes) -> IndexManifest:
    """The manifest, with other entries for some files."""
    (shard,) = index.manifest.shards
    changed = {name.replace("__", "."): entry for name, entry in changes.items()}
    return replace(index.manifest, shards=(replace(shard, files={**shard.files, **changed}),))


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_or_shorter_is_named(index, name):
    content = index.folder.read(path_of(index, name))
    index.folder.publish(path_of(index, name), content[:-1])
    with pytest.raises(
        DatasetError, match=rf"index/00000/{name}: has {len(content) - 1} bytes, not"
    ):
        RetrievalIndex.open(index.folder)
    index.folder.remove_file(path_of(index, name))
    for verify in (False, True):
        with pytest.raises(DatasetError, match=rf"index/00000/{name}: "):
            RetrievalIndex.open(index.folder, verify=verify)


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_found_when_digests_are_checked(index, name):
    content = bytearray(index.folder.read(path_of(index, name)))
    content[len(content) // 2] ^= 1
    index.folder.publish(path_of(index, name), bytes(content))
    with pytest.raises(DatasetError, match=rf"index/00000/{name}: damaged: digest"):
        RetrievalIndex.open(index.folder, verify=True)


def test_a_table_of_nonsense_is_named(index):
    entry = index.manifest.shards[0].files["pictures.arrow"]
    index.folder.publish(entry.file, b"\xff" * entry.bytes)
    with pytest.raises(DatasetError, match=rf"index/{entry.file}: cannot be read"):
        RetrievalIndex.open(index.folder)


def test_files_of_another_index_do_not_pass(tmp_path, index, shared_family):
    other = make(Folder.at(tmp_path / "other"), shared_family.sources(split="train"))
    for name in FILES:
        path = path_of(index, name)
        whole = index.folder.read(path)
        entry = other.manifest.shards[0].files[name]
        mixed = with_files(index, **{name.replace(".", "__"): entry})
        index.folder.publish(path, other.folder.read(path_of(other, name)))
        index.folder.publish_json("index.json", mixed.to_json())
        with pytest.raises(DatasetError, match="does not fit the others"):
            RetrievalIndex.open(index.folder, verify=True)
        index.folder.publish(path, whole)
    index.folder.publish_json("index.json", index.manifest.to_json())
    assert RetrievalIndex.open(index.folder, verify=True).digest == index.digest


@pytest.mark.parametrize("name", FILES)
def test_a_file_with_another_number_of_rows_does_not_pass(index, name):
    entry = index.manifest.shards[0].files[name]
    wrong = with_files(index, **{name.replace(".", "__"): replace(entry, rows=entry.rows - 1)})
    index.folder.publish_json("index.json", wrong.to_json())
    with pytest.raises(DatasetError, match=f"index/00000/{name}"):
        RetrievalIndex.open(index.folder, verify=True)


def test_a_full_disk_is_the_users_to_mend(tmp_path, monkeypatch, shared_family):
    def full(stream, data):
        raise OSError(28, "No space left on device")

    folder, sources = Folder.at(tmp_path / "full"), shared_family.sources()
    begin(folder, sources.lineage)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.storage._Hashed.write", full)
        with pytest.raises(ConfigError, match="the disk is full"):
            build(folder, sources, lambda count: None)
    assert [path for path in (tmp_path / "full" / "00000").rglob("*") if path.is_file()] == []
    build(folder, sources, lambda count: None)
    assert RetrievalIndex.open(folder).pictures.num_rows == 15


def test_a_later_format_is_refused(index):
    index.folder.publish_json(
        "index.json", index.manifest.to_json() | {"format": "viaduct-index/4"}
    )
    with pytest.raises(DatasetError, match="format='viaduct-index/4', this reads"):
        RetrievalIndex.open(index.folder)


def test_where_there_is_no_index_one_line_says_so(tmp_path, shared_family):
    with pytest.raises(ConfigError, match="nowhere: no such folder"):
        RetrievalIndex.open(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"pairs: no index \(it has no index.json\)"):
        RetrievalIndex.open(str(shared_family.home / "pairs"))
