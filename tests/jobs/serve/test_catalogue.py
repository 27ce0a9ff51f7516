import pytest

from pipeline.errors import DatasetError


def test_pictures_are_found_by_their_uids(make_catalogue, uid, jpeg):
    catalogue = make_catalogue()
    for row in range(7):
        found = catalogue.find(uid(row))
        assert (found.uid, found.row, found.url) == (uid(row), row, f"http://example.org/{row}.jpg")
        assert found.captions == [f"caption {i} of {row}" for i in range(row % 3)]
        assert catalogue.picture(uid(row)) == jpeg(row)
    for absent in (bytes(16), b"\xff" * 16, uid(0)[:8] + b"\x09" * 8):
        assert catalogue.find(absent) is None
        assert catalogue.picture(absent) is None


def test_those_taken_down_are_not(make_catalogue, uid):
    catalogue = make_catalogue(frozenset({uid(1), uid(5)}))
    assert [row for row in range(7) if catalogue.find(uid(row)) is None] == [1, 5]
    assert catalogue.picture(uid(5)) is None
    assert uid(1).hex() not in catalogue.facts()["examples"]
    assert len(catalogue.facts()["examples"]) == 5


def test_a_row_of_another_picture_is_a_damaged_dataset(make_catalogue, uid):
    catalogue = make_catalogue()
    table = catalogue._pairs[0].shard(0).table
    catalogue._shard = lambda *_: type("Shard", (), {"table": table.slice(1)})
    with pytest.raises(DatasetError, match=f"row 2 of shard 00000 is not picture {uid(2).hex()}"):
        catalogue.picture(uid(2))
