"""Builders that several tests of pipeline/ share."""

import io
import os
import socket
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from PIL import Image

from pipeline.accounting import Account
from pipeline.dataset import Shard
from pipeline.schemas import RAW
from pipeline.shard import FileEntry, ShardRecord


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
