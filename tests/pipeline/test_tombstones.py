"""Pictures taken down are listed beside the shards and seen by every reader."""

import pyarrow as pa
import pytest

from pipeline.errors import DatasetError
from pipeline.storage import Folder
from pipeline.tombstones import FILE, add_tombstones, live_mask, read_tombstones

A, B, C = (bytes([n]) * 16 for n in (1, 2, 3))


def test_tombstones_add_up_over_several_lists(tmp_path):
    folder = Folder.at(tmp_path)
    assert read_tombstones(folder) == frozenset()
    assert add_tombstones(folder, [A]) == 1
    assert add_tombstones(folder, [B, A]) == 2
    assert read_tombstones(folder) == {A, B}


def test_the_mask_tells_which_rows_are_live():
    uids = pa.chunked_array([[A, B], [C, A]], pa.binary(16))
    assert live_mask(uids, frozenset([A])).to_pylist() == [False, True, True, False]
    assert live_mask(uids, frozenset()).to_pylist() == [True] * 4


def test_a_uid_of_another_length_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="16 bytes"):
        add_tombstones(Folder.at(tmp_path), [b"short"])


def test_a_damaged_list_is_named(tmp_path):
    (tmp_path / FILE).write_text('{"uids": ["xyz"]}')
    with pytest.raises(DatasetError, match=r"tombstones\.json: field 'uids'"):
        read_tombstones(Folder.at(tmp_path))
