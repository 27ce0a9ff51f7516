"""What failed comes again with all that the source said of it, and nothing else does."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.accounting import Account
from pipeline.dataset import Dataset
from pipeline.draft import Draft
from pipeline.errors import ConfigError
from pipeline.fetch import FetchConfig, FolderFetcher, HttpFetcher
from pipeline.lineage import Lineage
from pipeline.retry import MAY_PASS, RetrySource
from pipeline.schemas import KEPT, LEDGER, RAW, SLICE, with_extra
from pipeline.shard import new_shard
from pipeline.sources import cut, open_source
from pipeline.storage import Folder
from pipeline.tombstones import add_tombstones
from pipeline.url_tables import SourceColumns

OUTCOMES = [
    *(KEPT, "failed:dns", "failed:http_404", "failed:http_503", KEPT, "dropped:too_many_pixels"),
    *("failed:not_a_picture", KEPT, "failed:timeout", "failed:opt_out"),
]
EXTRA = pa.struct([("license", pa.string())])


def make_raw(home: Path, *, locations: str = "url", per_shard: int = 4) -> Dataset:
    """A `raw` without pictures: of its ledger alone the outcomes matter."""
    config = {"locations": locations}
    raw = with_extra(RAW, EXTRA)
    draft = Draft.begin(Folder.at(home), "raw", raw, Lineage("ingest", config))
    records = []
    for number, first in enumerate(range(0, len(OUTCOMES), per_shard)):
        outcomes = OUTCOMES[first : first + per_shard]
        rows = [row_of(first + n) | {"outcome": o} for n, o in enumerate(outcomes)]
        with new_shard(draft.folder, number) as shard:
            kept = [{"uid": r["uid"], "captions": []} for r in rows if r["outcome"] == KEPT]
            shard.open(raw, 64).write(pa.Table.from_pylist(kept, raw))
            ledger = with_extra(LEDGER, EXTRA)
            shard.open(ledger, 1024, attachment="ledger").write(pa.Table.from_pylist(rows, ledger))
            captions = Account.all_kept(0)
            records.append(shard.commit(pictures=Account.of(outcomes), captions=captions))
    return draft.publish(records)


def row_of(number: int) -> dict:
    return {
        "uid": number.to_bytes(16, "big"),
        "url": f"http://a.org/{number}",
        "captions": [f"caption {number}"] * (number % 3),
        "source_row": number,
        "extra": {"license": f"cc-{number}" if number % 2 else None},
    }


def rows_again(raw: Dataset, classes: Sequence[str] = ()) -> list[dict]:
    slices = list(cut(RetrySource(raw, tuple(classes), None).tables(), 2))
    assert [s.num_rows for s in slices[:-1]] == [2] * (len(slices) - 1)
    assert all(s.schema.equals(with_extra(SLICE, EXTRA)) for s in slices)
    return [row for s in slices for row in s.to_pylist()]


@pytest.mark.parametrize(
    ("classes", "numbers"),
    [
        ((), [1, 3, 8]),
        (["http_404"], [2]),
        (["http_*", "timeout"], [2, 3, 8]),
        (["failed:dns", "dropped:too_many_pixels"], [1, 5]),
        (["*"], [1, 2, 3, 5, 6, 8, 9]),
    ],
)
def test_rows_of_the_classes_come_again_as_they_were(tmp_path, classes, numbers):
    assert rows_again(make_raw(tmp_path), classes) == [row_of(number) for number in numbers]


def test_a_class_that_nothing_failed_with_is_named_with_those_there_are(tmp_path):
    raw = make_raw(tmp_path)
    for name in ("htp_404", "kept", "set_aside"):
        with pytest.raises(ConfigError, match=rf"'{name}' is no outcome of .*failed:dns, failed"):
            RetrySource(raw, ("dns", name), None)


def test_what_was_taken_down_is_not_fetched_again(tmp_path):
    raw = make_raw(tmp_path)
    add_tombstones(raw.folder, [row_of(3)["uid"]])
    again = rows_again(Dataset.open(raw.folder))
    assert [row["source_row"] for row in again] == [1, 8]


def test_locations_that_are_no_urls_need_the_source_in_which_they_lie(tmp_path):
    files = make_raw(tmp_path / "files", locations="file")
    web = make_raw(tmp_path / "web")
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.jpg").touch()
    folder = open_source(str(tmp_path / "p"), SourceColumns())
    with pytest.raises(ConfigError, match=r"files was made of a source's files; name the source"):
        RetrySource(files, (), None)
    with pytest.raises(ConfigError, match=r"has files, but .*web was made of urls"):
        RetrySource(web, (), folder)
    fetcher = RetrySource(files, (), folder).open_fetcher(FetchConfig())
    assert isinstance(fetcher, FolderFetcher)
    assert fetcher.folder == tmp_path / "p"
    assert isinstance(RetrySource(web, (), None).open_fetcher(FetchConfig()), HttpFetcher)


def test_the_lineage_can_tell_what_was_asked_for(tmp_path):
    raw = make_raw(tmp_path)
    assert RetrySource(raw, (), None).classes == MAY_PASS
    assert RetrySource(raw, ("dns",), None).classes == ("dns",)
    assert RetrySource(raw, (), None).digest() == raw.digest
