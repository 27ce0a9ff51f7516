"""Builders that several tests of pipeline/ share."""

import io
import itertools
import os
import socket
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from PIL import Image

from pipeline.accounting import Account
from pipeline.dataset import Dataset, Shard
from pipeline.draft import Draft
from pipeline.features import token_columns
from pipeline.lineage import Lineage
from pipeline.schemas import PAIRS, RAW, features_schema
from pipeline.shard import FileEntry, ShardRecord, commit_table
from pipeline.storage import Folder
from pipeline.token_codes import Channels


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """A picture as the bytes of a file: `encode(picture, "PNG", **options)`."""

    def encode(picture: Image.Image, file_format: str, **options) -> bytes:
        buffer = io.BytesIO()
        picture.save(buffer, file_format, **options)
        return buffer.getvalue()

    return encode


@pytest.fixture(scope="session")
def noise() -> Callable[..., Image.Image]:
    """An RGB picture of seeded noise: `noise(seed, width=16, height=12)`."""

    def noise(seed: int, width: int = 16, height: int = 12) -> Image.Image:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    return noise


@pytest.fixture(scope="session")
def make_shard() -> Callable[..., Shard]:
    """A shard of `raw` in memory: `make_shard(jpegs, down=rows, captions=lists)`.

    The uid of row i is i, in 16 bytes. Originals are i + 10 pixels wide and 20 high.
    """

    def make_shard(jpegs, *, down=(), captions=None) -> Shard:
        count = len(jpegs)
        uids = [row.to_bytes(16, "big") for row in range(count)]
        columns = {
            "uid": uids,
            "url": [f"http://a/{row}" for row in range(count)],
            "picture": jpegs,
            "width_px": [16] * count,
            "height_px": [12] * count,
            "original_width_px": [row + 10 for row in range(count)],
            "original_height_px": [20] * count,
            "captions": captions or [[]] * count,
        }
        record = ShardRecord(
            number=0,
            entry=FileEntry("00000.arrow", count, 0, ""),
            uid_digest="",
            pictures=Account.all_kept(count),
        )
        return Shard(record, pa.table(columns, schema=RAW), frozenset(uids[row] for row in down))

    return make_shard


class Web:
    """Names and connections as a test wants them; nothing leaves the machine.

    A connection to `OUTSIDE`, an address of the open web, is led to loopback, to the same port.
    """

    OUTSIDE = "93.184.216.34"

    def __init__(self) -> None:
        self.names: dict[str, list[str] | Callable[[], list[str]]] = {"localhost": ["127.0.0.1"]}
        self.asked: list[str] = []
        self.attempts: list[tuple[str, int]] = []
        self._resolve, self._connect = socket.getaddrinfo, socket.socket.connect

    def getaddrinfo(self, host, port, *_, **__):
        self.asked.append(host)
        known = self.names.get(host.lower().rstrip("."), [host])
        addresses = known() if callable(known) else known
        numeric = {"type": socket.SOCK_STREAM, "flags": socket.AI_NUMERICHOST}
        return [found for a in addresses for found in self._resolve(a, port, **numeric)]

    def connect(self, connection: socket.socket, address) -> None:
        self.attempts.append(address[:2])
        if address[0] == self.OUTSIDE:
            address = ("127.0.0.1", address[1])
        if not address[0].startswith("127."):
            raise ConnectionRefusedError(address)
        self._connect(connection, address)


@pytest.fixture
def web(monkeypatch):
    """A stub of names, and the record of every connection that is tried."""
    stub = Web()
    monkeypatch.setattr(socket, "getaddrinfo", stub.getaddrinfo)
    monkeypatch.setattr(socket.socket, "connect", lambda *a: stub.connect(*a))
    return stub


# Features and the captions beside them: all of it a function of the row over all shards

P, C = 3, 5
SPLITS = ("train", "train", "test", "train", "validation")
"""Of the rows, over and over."""


def uid(row: int) -> bytes:
    return row.to_bytes(16, "big")


def captions_of(row: int) -> list[dict[str, str]]:
    """Row r has r % 4 captions in use, one that is rejected before them, and one after them."""
    kept = [(f"caption {n} of {row}", "kept") for n in range(row % 4)]
    told = [(f"rejected {row}", "rejected:empty"), *kept, ("rejected too", "rejected:short")]
    return [{"text": text, "source": "web", "status": status} for text, status in told]


def values(rows: Sequence[int], view: int = 0) -> np.ndarray:
    """float32[N, P, C]"""
    one = (np.random.default_rng((row, view)).normal(0, 9, (P, C)) for row in rows)
    return np.stack([np.zeros((P, C)), *one])[1:].astype(np.float32)


def publish(folder: Folder, kind: str, tables: list[pa.Table], lineage: Lineage) -> Dataset:
    draft = Draft.begin(folder, kind, tables[0].schema, lineage)
    for number, table in enumerate(tables):
        everything = Account.all_kept(table.num_rows)
        captions = everything if kind == "pairs" else None
        rows = draft.rows_per_batch
        commit_table(draft.folder, number, table, rows, pictures=everything, captions=captions)
    return draft.publish(draft.committed().values())


def rows_of(shards: Sequence[int], first: int) -> list[range]:
    ends = np.cumsum([first, *shards]).tolist()
    return [range(a, b) for a, b in itertools.pairwise(ends)]


def make_pairs(home, shards: Sequence[int] = (40, 7), first: int = 0) -> Dataset:
    """`pairs` of shards of so many rows, whose pictures are none: whoever opens one fails."""
    tables = [
        pa.Table.from_pylist(
            [
                {
                    "uid": uid(row),
                    "picture": b"no picture",
                    "captions": captions_of(row),
                    "split": SPLITS[row % len(SPLITS)],
                }
                for row in rows
            ],
            PAIRS,
        )
        for rows in rows_of(shards, first)
    ]
    return publish(Folder.at(home), "pairs", tables, Lineage("test", {}))


def make_features(
    home,
    dtype: str = "fp16",
    shards: Sequence[int] = (40, 7),
    *,
    null: Sequence[int] = (),
    first: int = 0,
    view: int | None = None,
    encoder: str = "a",
) -> Dataset:
    """`features` beside them; a record batch holds 16 rows."""
    tables = []
    channels = Channels.of([values(range(64))], C) if dtype == "int8" else None
    schema = features_schema(P, C, dtype, channels.as_metadata if channels else None)
    for rows in rows_of(shards, first):
        present = [row not in null for row in rows]
        uids = [uid(row) for row in rows]
        here = values([row for row in rows if row not in null], view or 0)
        columns = {"uid": uids, **token_columns(here, present, uids, dtype, channels)}
        tables.append(pa.table(columns, schema=schema))
    config = {} if view is None else {"view": view}
    frozen = {"encoder": {"name": encoder, "width": C}}
    return publish(Folder.at(home), "features", tables, Lineage("test", config, (), frozen))


@pytest.fixture(scope="session")
def cached() -> SimpleNamespace:
    """Makers of `pairs` and `features` that lie side by side, and what they hold."""
    return SimpleNamespace(
        shape=(P, C),
        splits=SPLITS,
        uid=uid,
        values=values,
        make_pairs=make_pairs,
        make_features=make_features,
    )


@pytest.fixture(scope="module")
def bucket():
    """Options of an S3 URI that lead to a bucket `tables` of this module's own, on loopback."""
    from moto.server import ThreadedMotoServer

    before = dict(os.environ)
    os.environ.update(
        AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b", AWS_EC2_METADATA_DISABLED="1"
    )
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = f"endpoint_override={host}%3A{port}&scheme=http&region=us-east-1"
    fs, _ = pafs.FileSystem.from_uri(f"s3://tables?{options}&allow_bucket_creation=true")
    fs.create_dir("tables")
    yield fs, options
    fs.delete_dir_contents("tables")  # all of moto's servers in a process have one memory
    server.stop()
    os.environ.clear()
    os.environ.update(before)
