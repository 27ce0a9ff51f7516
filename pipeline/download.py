"""Downloading one slice of a source, with img2dataset's Downloader.

The Downloader gives threads and order of work; what it fetches with, how pictures are decoded and
where they go is ours. Three of its habits are met here: it reports in the order of arrival, so
rows are put back in the source's order; it loses a row on an unexpected exception, so a row that
it never reported becomes `failed:internal`; it deletes its input file, so it gets one of its own.
"""

import importlib.util
import io
import logging
import math
import sys
import tempfile
import threading
import types
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.accounting import Account
from pipeline.captions import web_caption
from pipeline.deadlines import ShardTime, on_time_of
from pipeline.fetch import SHARD_DEADLINE, Fetcher, FetchFault, host_of
from pipeline.filters import Filter, judged
from pipeline.picture_filters import FACTS
from pipeline.pictures import PictureConfig, PictureFault, StoredPicture, store
from pipeline.schemas import EXTRA, KEPT, LEDGER, RAW, extra_type, with_extra
from pipeline.turns import RowQueue

logger = logging.getLogger(__name__)

_ONE_AT_A_TIME = threading.Lock()
"""img2dataset finds what it fetches with in a module's global."""


@dataclass(frozen=True)
class Downloaded:
    """What came of one slice of a source."""

    raw: pa.Table
    """`schemas.RAW`: the pictures that arrived, in the source's order."""
    ledger: pa.Table
    """`schemas.LEDGER`: every row of the slice."""
    pictures: Account
    captions: Account
    """A caption is dropped with its picture, for its picture's reason."""


def download(
    slice_: pa.Table,
    fetch: Fetcher,
    config: PictureConfig,
    *,
    threads: int,
    per_host: int | None = None,
    timeout_s: float = math.inf,
    filters: Sequence[Filter] = (),
) -> Downloaded:
    """Fetch, decode and reduce the pictures of one slice.

    Args:
        slice_: `schemas.SLICE`, also with the column `extra`, which then both tables have.
        fetch: gets the bytes behind a location; it was told what to expect.
        config: how pictures are stored.
        threads: fetches at once.
        per_host: threads at once that are busy with rows of one host; None is all.
        timeout_s: longest time to wait for fetches; rows that are not there by then are
            `failed:deadline`.
        filters: a picture that one of them refuses is dropped (`picture_filters.FACTS`).
    """
    arrived: dict[int, StoredPicture] = {}
    outcomes = ["failed:internal"] * slice_.num_rows
    locations = slice_.column("url").to_pylist()
    time = ShardTime(timeout_s)
    _run_downloader(
        locations,
        _fetching(locations, fetch, time, per_host or threads),
        _storing(config, time),
        threads,
        outcomes,
        arrived,
    )
    for row, outcome in zip(arrived, judged(_facts(arrived.values()), filters, KEPT), strict=True):
        outcomes[row] = outcome
    captions = slice_.column("captions").to_pylist()
    kept = [row for row, outcome in enumerate(outcomes) if outcome == KEPT]
    return Downloaded(
        raw=_raw_table(slice_.take(pa.array(kept, pa.int64())), [arrived[row] for row in kept]),
        ledger=_ledger_table(slice_, outcomes),
        pictures=Account.of(outcomes),
        captions=Account.of(
            outcome if outcome == KEPT else f"picture:{outcome}"
            for outcome, texts in zip(outcomes, captions, strict=True)
            for _ in texts
        ),
    )


def _fetching(locations: list[str], fetch: Fetcher, time: ShardTime, per_host: int) -> Any:
    """What is called as img2dataset's `download_image`; it never raises.

    The call means that a thread is free; which row it fetches is for `RowQueue` to say.
    """
    queue = RowQueue([host_of(location) for location in locations], per_host)

    def download_image(*_: Any) -> tuple[int, io.BytesIO | None, str | None]:
        with queue.next() as row, on_time_of(time):
            try:
                if time.remaining_s() <= 0:
                    raise FetchFault(SHARD_DEADLINE)
                return row, io.BytesIO(fetch(locations[row])), None
            except FetchFault as fault:
                return row, None, str(fault)
            except Exception:  # one odd row must not lose the shard: it is logged and counted
                logger.exception("fetch failed location=%r", locations[row])
                return row, None, "failed:internal"

    return download_image


def _storing(config: PictureConfig, time: ShardTime) -> Any:
    """What is called as img2dataset's resizer, by one thread; the shard's time stands still."""

    def resize(stream: io.BytesIO, _bbox: Any) -> tuple[Any, Any, Any, Any, Any, str | None]:
        try:
            with time.standing_still():
                picture = store(stream.getvalue(), config)
        except PictureFault as fault:
            return None, None, None, None, None, str(fault)
        except Exception:  # as in `_fetching`
            logger.exception("picture failed bytes=%d", len(stream.getvalue()))
            return None, None, None, None, None, "failed:internal"
        return picture, *picture.size_px, *picture.original_size_px, None

    return resize


def _img2dataset_downloader() -> Any:
    """The module `img2dataset.downloader` without what the package itself imports.

    That is torch, by way of its own resizer: 780 MB and three seconds in each worker.
    """
    name = "img2dataset.downloader"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.find_spec("img2dataset")
    if spec is None:
        raise ModuleNotFoundError("img2dataset")
    package = types.ModuleType("img2dataset")
    package.__path__ = list(spec.submodule_search_locations or ())
    sys.modules["img2dataset"] = package
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules["img2dataset"]  # whoever wants it whole can still import it


def _run_downloader(
    locations: list[str],
    download_image: Any,
    resize: Any,
    threads: int,
    outcomes: list[str],
    arrived: dict[int, StoredPicture],
) -> None:
    """Drive one Downloader over `locations`; fills `outcomes` and `arrived` by row."""

    class Writer:
        """Keeps what is reported, by the row's number; img2dataset makes one of it a shard."""

        def __init__(self, *_: Any) -> None:
            pass

        def write(self, img: Any, key: str, caption: Any, meta: dict[str, Any]) -> None:
            row = meta["row"]
            if meta["status"] == "success":
                arrived[row] = img
                outcomes[row] = KEPT
            else:
                outcomes[row] = meta["error_message"]

        def close(self) -> None:
            pass

    with _ONE_AT_A_TIME, tempfile.TemporaryDirectory() as scratch:
        downloader = _img2dataset_downloader()
        downloader.download_image = download_image
        slice_file = Path(scratch, "slice.arrow")
        table = pa.table({"url": pa.array(locations, pa.string()), "row": range(len(locations))})
        with pa.ipc.new_file(slice_file, table.schema) as writer:
            writer.write_table(table)
        downloader.Downloader(
            sample_writer_class=Writer,
            resizer=resize,
            thread_count=threads,
            save_caption=False,
            extract_exif=False,
            output_folder=scratch,
            column_list=["url", "row"],
            timeout=0,  # this and the four below are the fetcher's business
            number_sample_per_shard=max(1, len(locations)),
            oom_shard_count=1,
            compute_hash=None,
            verify_hash_type=None,
            encode_format="jpg",
            retries=0,
            user_agent_token=None,
            disallowed_header_directives=None,
        ).download_shard((0, str(slice_file)))


def _facts(pictures: Iterable[StoredPicture]) -> pa.Table:
    rows = [
        (*picture.original_size_px, picture.animated, picture.colour_range) for picture in pictures
    ]
    columns = zip(*rows, strict=True) if rows else [[] for _ in FACTS]
    return pa.table([list(column) for column in columns], schema=FACTS)


def _raw_table(rows: pa.Table, pictures: list[StoredPicture]) -> pa.Table:
    captions = [
        [web_caption(text) for text in texts] for texts in rows.column("captions").to_pylist()
    ]
    kind = extra_type(rows.schema)
    extra = {} if kind is None else {EXTRA: rows.column(EXTRA)}
    return pa.table(
        {
            "uid": rows.column("uid"),
            "url": rows.column("url"),
            "picture": [picture.jpeg for picture in pictures],
            "width_px": [picture.size_px[0] for picture in pictures],
            "height_px": [picture.size_px[1] for picture in pictures],
            "original_width_px": [picture.original_size_px[0] for picture in pictures],
            "original_height_px": [picture.original_size_px[1] for picture in pictures],
            "captions": captions,
            **extra,
        },
        schema=with_extra(RAW, kind),
    )


def _ledger_table(slice_: pa.Table, outcomes: list[str]) -> pa.Table:
    columns = {name: slice_.column(name) for name in slice_.schema.names}
    schema = with_extra(LEDGER, extra_type(slice_.schema))
    return pa.table({**columns, "outcome": outcomes}, schema=schema)
