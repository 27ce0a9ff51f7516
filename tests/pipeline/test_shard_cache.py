"""Copies of shards: whole or absent, within the limit, fetched once, whoever dies meanwhile."""

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline import shard_cache
from pipeline.dataset import Dataset
from pipeline.errors import ConfigError, DatasetError
from pipeline.loader import Pairs
from pipeline.shard_cache import CacheConfig, local_copy
from pipeline.tombstones import add_tombstones
from pipeline.views import open_views

SHARDS = (40, 40, 40, 40, 7)


@pytest.fixture(scope="module")
def uri(bucket):
    """The URI of what is in the bucket, by name."""
    _, options = bucket
    return lambda name: f"s3://tables/{name}?{options}"


@pytest.fixture(scope="module")
def remote(uri, cached):
    """Locations of features and pairs on the object store; row 41 has no tokens."""
    cached.make_features(uri("features"), shards=SHARDS, null=[41])
    cached.make_pairs(uri("pairs"), SHARDS)
    return uri("features"), uri("pairs")


@pytest.fixture(scope="module")
def entries(remote):
    features = Dataset.open(remote[0])
    return features.folder, [record.entry for record in features.manifest.records]


@pytest.fixture
def fetched(monkeypatch):
    """The files that are fetched whole, in order."""
    names = []
    fetch = shard_cache._fetch
    monkeypatch.setattr(
        shard_cache, "_fetch", lambda c, r, e, n: names.append(e.file) or fetch(c, r, e, n)
    )
    return names


def config_of(home: Path, entries, num_shards: float = 9) -> CacheConfig:
    return CacheConfig(cache=str(home / "cache"), cache_bytes=int(num_shards * entries[1][0].bytes))


def held(config: CacheConfig) -> list[Path]:
    return [path for path in Path(config.cache).iterdir() if path.suffix != ".lock"]


def test_training_pairs_come_from_an_object_store_as_from_a_disk(
    tmp_path, remote, cached, entries, fetched
):
    """Which shards have tokens for all rows is seen by one of each size."""
    config = config_of(tmp_path, entries, 3)
    pairs = Dataset.open(remote[1], "pairs")
    found = Pairs(open_views(remote[0], config), pairs, "train")
    assert len(fetched) == 3  # of 40 rows, of 40 of which one is null, of 7
    rows = [r for r in range(sum(SHARDS)) if r % 5 in (0, 1, 3) and r % 4 and r != 41]
    assert len(found) == len(rows)
    order = np.random.default_rng(0).permutation(len(rows))
    expected = cached.values([rows[n] for n in order]).astype(np.float16)
    batch = found.batch(order, np.zeros(len(order)))
    np.testing.assert_array_equal(batch.tokens.numpy(), expected)
    assert batch.texts == [f"caption 0 of {rows[n]}" for n in order]
    assert sum(path.stat().st_size for path in held(config)) <= config.cache_bytes


def test_what_was_taken_down_remotely_is_left_out(tmp_path, uri, cached, entries, fetched):
    features = cached.make_features(uri("taken"), shards=(40, 40))
    pairs = cached.make_pairs(uri("beside"), (40, 40))
    add_tombstones(features.folder, [cached.uid(1), cached.uid(41)])
    config = config_of(tmp_path, entries)
    found = Pairs(open_views(uri("taken"), config), pairs, "train")
    kept = [r for r in range(80) if r % 5 in (0, 1, 3) and r % 4 and r not in (1, 41)]
    assert [40 * shard + row for shard, row in found.parts[0].places(np.arange(len(found)))] == kept
    assert len(fetched) == 1


def test_a_shard_is_fetched_once_and_the_oldest_goes(tmp_path, entries, fetched):
    folder, (a, b, c, *_) = entries
    config = config_of(tmp_path, entries, 2.2)
    for entry in (a, b, a, c, a, b):  # c evicts b, b evicts c
        name = local_copy(config, folder, entry)
        assert (Path(config.cache) / name).stat().st_size == entry.bytes
        time.sleep(0.01)  # for the file's time
    assert fetched == [entry.file for entry in (a, b, c, b)]
    assert {path.stem for path in held(config)} == {a.digest, b.digest}


def test_what_is_mapped_outlives_its_eviction(tmp_path, remote, entries, cached):
    folder, (_, b, *_) = entries
    config = config_of(tmp_path, entries, 1.2)
    features = Dataset.open(remote[0], "features", config)
    table = features.shard(0).table
    local_copy(config, folder, b)
    assert [path.stem for path in held(config)] == [b.digest]
    tokens = table.column("tokens").combine_chunks().to_numpy_ndarray()
    np.testing.assert_array_equal(tokens, cached.values(range(40)).astype(np.float16))


def test_a_shard_that_has_no_room_is_named(tmp_path, entries):
    folder, (a, *_) = entries
    config = config_of(tmp_path, entries, 0.5)
    with pytest.raises(ConfigError, match=f"cache_bytes: {config.cache_bytes} has no room for"):
        local_copy(config, folder, a)


def test_what_is_damaged_or_gone_is_named_and_leaves_nothing(tmp_path, uri, cached, entries):
    features = cached.make_features(uri("damaged"), shards=SHARDS[:2])
    config = config_of(tmp_path, entries)
    opened = Dataset.open(uri("damaged"), "features", config)
    first, second = (record.entry for record in features.manifest.records)
    content = bytearray(features.folder.read(first.file))
    content[2000] ^= 1
    features.folder.publish(first.file, bytes(content))
    features.folder.remove_file(second.file)
    with pytest.raises(DatasetError, match=f"{first.file}: is not what its record says"):
        opened.shard(0)
    with pytest.raises(DatasetError, match=f"{second.file}: cannot be fetched"):
        opened.shard(1)
    assert held(config) == []


DIES = """
import os, sys
from pipeline import shard_cache
from pipeline.dataset import Dataset
from pipeline.shard_cache import CacheConfig
shard_cache._CHUNK_BYTES = 512
os.replace = lambda *_: os.kill(os.getpid(), 9)
config = CacheConfig(cache=sys.argv[2], cache_bytes=int(sys.argv[3]))
Dataset.open(sys.argv[1], "features", config).shard(0)
"""


def test_what_a_killed_process_leaves_is_no_copy_and_goes(tmp_path, remote, entries, fetched):
    folder, (a, b, *_) = entries
    config = config_of(tmp_path, entries, 1.2)
    words = [sys.executable, "-c", DIES, remote[0], config.cache, str(config.cache_bytes)]
    assert subprocess.run(words, check=False).returncode == -9
    (left,) = held(config)
    assert left.suffix == ".part"
    local_copy(config, folder, b)  # its room is taken by what was left
    assert [path.name for path in held(config)] == [f"{b.digest}.arrow"]
    local_copy(config, folder, a)
    assert [path.name for path in held(config)] == [f"{a.digest}.arrow"]


def test_what_is_left_under_the_same_lock_goes_too(tmp_path, entries):
    folder, (a, *_) = entries
    config = config_of(tmp_path, entries, 1.2)
    config.folder.create()
    config.folder.publish(f"{a.digest[:2]}{'0' * 62}.part", bytes(a.bytes))
    name = local_copy(config, folder, a)
    assert [path.name for path in held(config)] == [name]


def reads(location: str, config: CacheConfig, seed: int, failed) -> None:
    """Opens shards in an order of its own, and looks at what they hold."""
    features = Dataset.open(location, "features", config)
    for number in np.random.default_rng(seed).integers(0, 4, 200).tolist():
        uids = features.shard(number).table.column("uid").to_pylist()
        if uids != [(40 * number + row).to_bytes(16, "big") for row in range(40)]:
            failed.set()


@pytest.mark.slow
def test_many_processes_share_a_cache_that_holds_less_than_they_read(
    tmp_path, remote, entries, monkeypatch
):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # where processes find this file
    config = config_of(tmp_path, entries, 2.5)
    context = multiprocessing.get_context("spawn")
    failed = context.Event()
    processes = [
        context.Process(target=reads, args=(remote[0], config, seed, failed)) for seed in range(3)
    ]
    for process in processes:
        process.start()
    most = 0
    while any(process.is_alive() for process in processes):
        if os.path.isdir(config.cache):
            most = max(most, sum(_size(path) for path in held(config)))
        time.sleep(0.005)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert not failed.is_set()
    assert 0 < most <= config.cache_bytes
    assert all(path.suffix == ".arrow" for path in held(config))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def test_a_cache_of_no_bytes_is_refused():
    with pytest.raises(ConfigError, match="cache_bytes: 0 is not positive"):
        CacheConfig(cache_bytes=0)
