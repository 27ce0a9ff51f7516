"""Datasets: drafts that go on, manifests that are refused when wrong, shards side by side."""

import json

import pyarrow as pa
import pyarrow.dataset
import pytest

from pipeline.accounting import Account
from pipeline.dataset import Dataset, check_side_by_side
from pipeline.draft import Draft
from pipeline.errors import ConfigError, DatasetError
from pipeline.lineage import Lineage, Parent
from pipeline.schemas import PAIRS
from pipeline.shard import new_shard
from pipeline.storage import Folder
from pipeline.tombstones import add_tombstones

LINEAGE = Lineage("test", {"size": 3}, (Parent("source", "0" * 64),))


def pairs_table(numbers) -> pa.Table:
    captions = [{"text": "a", "source": "web", "status": "kept"}]
    return pa.Table.from_pylist(
        [
            {
                "uid": number.to_bytes(16, "big"),
                "url": f"http://x/{number}",
                "picture": bytes([number]) * 100,
                "captions": captions,
                "split": "train",
            }
            for number in numbers
        ],
        schema=PAIRS,
    )


def commit(draft: Draft, number: int, numbers) -> None:
    table = pairs_table(numbers)
    with new_shard(draft.folder, number) as shard:
        shard.open(PAIRS, draft.rows_per_batch).write(table)
        everything = Account.all_kept(table.num_rows)
        shard.commit(pictures=everything, captions=everything)


def make(folder, *shards, lineage: Lineage = LINEAGE) -> Dataset:
    draft = Draft.begin(Folder.at(folder), "pairs", PAIRS, lineage)
    for number, numbers in enumerate(shards):
        commit(draft, number, numbers)
    return draft.publish(draft.committed().values())


def test_a_dataset_comes_back_as_it_was_written(tmp_path):
    made = make(tmp_path, range(5), range(5, 8))
    opened = Dataset.open(str(tmp_path), "pairs")
    assert opened.digest == made.digest
    assert opened.num_rows == 8
    assert opened.manifest.pictures == opened.manifest.captions == Account.all_kept(8)
    assert opened.manifest.lineage == LINEAGE
    assert opened.shard(1, verify=True).table.equals(pairs_table(range(5, 8)))


def test_equal_content_has_an_equal_digest_wherever_it_lies(tmp_path):
    assert make(tmp_path / "a", range(5)).digest == make(tmp_path / "b" / "c", range(5)).digest


@pytest.mark.parametrize(
    "other",
    [
        Lineage("test", {"size": 4}, LINEAGE.parents),
        Lineage("other", {"size": 3}, LINEAGE.parents),
        Lineage("test", {"size": 3}, (Parent("source", "1" * 64),)),
        Lineage("test", {"size": 3}, LINEAGE.parents, {"encoder": {"name": "x"}}),
    ],
)
def test_the_digest_covers_the_lineage(tmp_path, other):
    a = make(tmp_path / "a", range(5))
    assert a.digest != make(tmp_path / "b", range(5), lineage=other).digest


def test_a_draft_goes_on_with_what_is_committed(tmp_path):
    draft = Draft.begin(Folder.at(tmp_path), "pairs", PAIRS, LINEAGE)
    commit(draft, 1, range(5))
    again = Draft.begin(Folder.at(tmp_path), "pairs", PAIRS, LINEAGE)
    assert list(again.committed()) == [1]
    with pytest.raises(ConfigError, match="not finished; run its job again"):
        Dataset.open(str(tmp_path))


def test_a_draft_of_another_configuration_is_refused_with_the_difference(tmp_path):
    Draft.begin(Folder.at(tmp_path), "pairs", PAIRS, LINEAGE)
    other = Lineage("test", {"size": 4}, LINEAGE.parents)
    with pytest.raises(ConfigError, match=r"begun otherwise \(config\.size: 3 there, 4 now\)"):
        Draft.begin(Folder.at(tmp_path), "pairs", PAIRS, other)


def test_a_published_dataset_refuses_another_configuration_and_another_kind(tmp_path):
    make(tmp_path, range(5))
    with pytest.raises(ConfigError, match=r"config\.size"):
        Draft.begin(Folder.at(tmp_path), "pairs", PAIRS, Lineage("test", {"size": 4}))
    with pytest.raises(ConfigError, match="holds 'pairs', not 'raw'"):
        Draft.begin(Folder.at(tmp_path), "raw", PAIRS, LINEAGE)


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    for name in ("thesis", "thesis.tex"):
        folder = tmp_path / name.replace(".", "-")
        (folder / name).mkdir(parents=True)
        with pytest.raises(ConfigError, match=f"holds {name} and no dataset"):
            Draft.begin(Folder.at(folder), "pairs", PAIRS, LINEAGE)
        assert [p.name for p in folder.iterdir()] == [name]


def test_a_shard_that_was_removed_is_made_again_and_must_agree(tmp_path):
    made = make(tmp_path, range(5), range(5, 8))
    (tmp_path / "00001.arrow").unlink()
    draft = Draft.begin(Folder.at(tmp_path), "pairs", PAIRS, LINEAGE)
    assert draft.whole() is None
    commit(draft, 1, range(5, 8))
    assert draft.whole().digest == made.digest
    (tmp_path / "00001.arrow").unlink()
    with pytest.raises(DatasetError, match="two attempts at this shard disagree"):
        commit(draft, 1, range(5, 9))
    assert not (tmp_path / "00001.arrow").exists()
    assert draft.whole() is None


def test_a_published_dataset_whose_record_was_changed_is_not_whole(tmp_path):
    make(tmp_path, range(5), range(5, 8))
    make(tmp_path / "other", range(9, 12))
    for end in ("arrow", "json"):
        (tmp_path / f"00000.{end}").write_bytes((tmp_path / f"other/00000.{end}").read_bytes())
    assert Draft.begin(Folder.at(tmp_path), "pairs", PAIRS, LINEAGE).whole() is None


def test_a_damaged_record_counts_as_absent(tmp_path):
    draft = Draft.begin(Folder.at(tmp_path), "pairs", PAIRS, LINEAGE)
    commit(draft, 0, range(5))
    commit(draft, 1, range(5))
    (tmp_path / "00001.json").write_text("{")
    assert list(draft.committed()) == [0]


def test_shards_set_aside_are_accounted_for(tmp_path):
    draft = Draft.begin(Folder.at(tmp_path), "pairs", PAIRS, LINEAGE)
    commit(draft, 0, range(5))
    commit(draft, 2, range(5, 9))
    dataset = draft.publish(draft.committed().values(), set_aside={1: 7})
    assert dataset.manifest.pictures == Account(16, 9, {"set_aside": 7})
    assert list(dataset.records) == [0, 2]
    with pytest.raises(DatasetError, match="shard 00001 is not there"):
        dataset.shard(1)


def test_another_kind_than_needed_is_refused(tmp_path):
    make(tmp_path, range(5))
    with pytest.raises(ConfigError, match="holds 'pairs', but 'features' is needed"):
        Dataset.open(str(tmp_path), "features")


def test_a_missing_or_empty_folder_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere: no such folder"):
        Dataset.open(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="no dataset"):
        Dataset.open(str(tmp_path))


@pytest.mark.parametrize("field", ["kind", "schema", "lineage", "shards", "pictures", "digest"])
def test_a_manifest_without_a_field_is_named(tmp_path, field):
    make(tmp_path, range(5))
    value = json.loads((tmp_path / "dataset.json").read_text())
    del value[field]
    (tmp_path / "dataset.json").write_text(json.dumps(value))
    with pytest.raises(DatasetError, match=rf"dataset\.json.*{field}"):
        Dataset.open(str(tmp_path))


def test_a_manifest_that_was_edited_is_refused(tmp_path):
    make(tmp_path, range(5))
    file = tmp_path / "dataset.json"
    file.write_text(file.read_text().replace('"size": 3', '"size": 5'))
    with pytest.raises(DatasetError, match="digest is not that of its content"):
        Dataset.open(str(tmp_path))


def test_a_manifest_of_a_later_format_is_refused(tmp_path):
    make(tmp_path, range(5))
    file = tmp_path / "dataset.json"
    file.write_text(file.read_text().replace("viaduct/1", "viaduct/2"))
    with pytest.raises(DatasetError, match="format='viaduct/2'"):
        Dataset.open(str(tmp_path))


def test_a_changed_byte_is_found_and_its_file_named(tmp_path):
    dataset = make(tmp_path, range(5))
    file = tmp_path / "00000.arrow"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(DatasetError, match=r"00000\.arrow: damaged: digest .* rebuild it"):
        dataset.shard(0, verify=True)


def test_a_file_that_is_no_arrow_is_named(tmp_path):
    dataset = make(tmp_path, range(5))
    (tmp_path / "00000.arrow").write_bytes(b"x" * 100)
    with pytest.raises(DatasetError, match=r"00000\.arrow: cannot be read"):
        dataset.shard(0)


def test_tombstones_mark_rows_and_move_none(tmp_path):
    made = make(tmp_path, range(5))
    add_tombstones(Folder.at(tmp_path), [(3).to_bytes(16, "big")])
    dataset = Dataset.open(str(tmp_path))
    shard = dataset.shard(0)
    assert shard.table.num_rows == 5
    assert shard.live.to_pylist() == [True, True, True, False, True]
    assert dataset.digest == made.digest


def test_datasets_side_by_side_match_or_are_both_named(tmp_path):
    a, b = make(tmp_path / "a", range(5), range(5, 8)), make(tmp_path / "b", range(5), range(5, 8))
    check_side_by_side(a, b)
    others = {
        "shard 00001 has 3 rows and 4": (range(5), range(5, 9)),
        "shard 00001 holds other pictures": (range(5), range(6, 9)),
        "shard 00001 is only in the first": (range(5),),
    }
    for number, (message, shards) in enumerate(others.items()):
        other = make(tmp_path / f"other-{number}", *shards)
        with pytest.raises(ConfigError, match=f"a and .*other-{number} do not match: {message}"):
            check_side_by_side(a, other)


def test_datasets_and_polars_and_duckdb_open_pairs_as_they_are(tmp_path):
    datasets = pytest.importorskip("datasets")
    polars = pytest.importorskip("polars")
    duckdb = pytest.importorskip("duckdb")
    make(tmp_path / "pairs", range(5), range(5, 8))
    files = str(tmp_path / "pairs" / "*.arrow")

    loaded = datasets.load_dataset(
        "arrow", data_files=files, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded.num_rows == 8
    assert loaded[6]["picture"] == bytes([6]) * 100
    assert loaded[6]["captions"] == [{"text": "a", "source": "web", "status": "kept"}]

    frame = polars.scan_ipc(files).collect()
    assert frame["uid"].to_list() == [number.to_bytes(16, "big") for number in range(8)]
    assert frame["captions"].list.len().to_list() == [1] * 8

    paths = sorted(str(path) for path in (tmp_path / "pairs").glob("*.arrow"))
    pairs = pa.dataset.dataset(paths, format="ipc")
    counted = duckdb.sql("select count(*), min(url) from pairs where split = 'train'").fetchall()
    assert counted == [(8, "http://x/0")]
    assert pairs.count_rows() == 8
