"""Which kind is taken for how many vectors, and what it takes."""

import pytest

from indexes.kinds import (
    GIB,
    IndexConfig,
    chosen,
    disk_bytes,
    memory_bytes,
    num_lists,
    sub_vectors,
)
from pipeline.errors import ConfigError


@pytest.mark.parametrize(
    ("num_vectors", "memory_gib", "kind"),
    [
        (19_999, None, "exact"),
        (20_000, None, "hnsw"),
        (499_999, None, "hnsw"),
        (500_000, None, "ivfpq"),
        (10**9, None, "ivfpq"),
        (400_000, 0.25, "hnsw"),  # 528 bytes a vector are 0.20 GiB
        (400_000, 0.1, "ivfpq"),
        (400_000, 0.01, "ivf"),
        (3_200_000, 0.2, "ivfpq"),  # 40 bytes a vector and 4,096 centres of 1 KiB
        (3_200_000, 0.1, "ivf"),
        (100, 1e-9, "exact"),
    ],
)
def test_auto_goes_by_vectors_and_memory(num_vectors, memory_gib, kind):
    assert chosen(IndexConfig(memory_gib=memory_gib), num_vectors, 256) == kind


def test_a_kind_that_is_asked_for_is_taken():
    for kind in ("exact", "hnsw", "ivf", "ivfpq"):
        assert chosen(IndexConfig(kind=kind), 7, 256) == kind


def test_what_a_vector_takes():
    assert memory_bytes("exact", 1000, 256) == 0
    lists = 4096 * 256 * 4
    assert memory_bytes("ivfpq", 3_200_000, 256) == lists + 3_200_000 * (32 + 8)
    assert memory_bytes("ivf", 3_200_000, 256) == lists
    assert disk_bytes("ivf", 3_200_000, 256) == lists + 3_200_000 * (256 + 8)
    assert 400_000 * 520 < memory_bytes("hnsw", 400_000, 256) < 0.2 * GIB


@pytest.mark.parametrize(
    ("num_vectors", "lists"),
    [(1, 1), (2, 2), (10, 8), (1000, 64), (3_200_000, 4096), (10**10, 65536)],
)
def test_lists_are_a_power_of_two_near_twice_the_root(num_vectors, lists):
    assert num_lists(num_vectors) == lists


@pytest.mark.parametrize(("embed_dim", "parts"), [(256, 64), (8, 2), (6, 3), (7, 7)])
def test_codes_are_of_as_many_values_as_fit(embed_dim, parts):
    assert sub_vectors(embed_dim) == parts


@pytest.mark.parametrize(
    "wrong",
    [
        {"memory_gib": 0},
        {"target_recall": 0},
        {"target_recall": 1.01},
        {"vectors_per_picture": 0},
        {"shard_pictures": 0},
    ],
)
def test_settings_that_make_no_sense_are_named(wrong):
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"^{name}: {wrong[name]} is not"):
        IndexConfig(**wrong)
