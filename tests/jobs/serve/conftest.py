"""What the tests of the server share: a small catalogue, and a server on loopback in a thread."""

import asyncio
import contextlib
import io
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pyarrow as pa
import pytest
from PIL import Image

from indexes.gathering import PICTURES_SCHEMA
from indexes.parts import Part
from indexes.retrieval import RetrievalIndex
from jobs.search_places import PlacesConfig
from jobs.serve.access import Access
from jobs.serve.app import make_app
from jobs.serve.catalogue import Catalogue
from jobs.serve.limits import LimitsConfig
from jobs.serve.metrics import Metrics
from jobs.serve.replicas import Asked, Refusal, Replica, ReplicaWork, Reply
from jobs.serve.running import http_server, listening
from jobs.serve.watching import Watched
from pipeline.pictures import PictureConfig, PictureFault, store
from pipeline.storage import Folder

NUM_PICTURES = 7
QUICK = {"request_timeout_s": 2.0, "reading_timeout_s": 2.0, "search_timeout_s": 2.0}
NAMES = frozenset({"127.0.0.1", "localhost"})


def jpeg_of(row: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 30), (30 * row, 120, 200)).save(out, "JPEG")
    return out.getvalue()


def uid_of(row: int) -> bytes:
    """The first three begin alike, as no real ones do: the second half tells them apart."""
    return bytes(8) + bytes([row + 1]) * 8 if row < 3 else bytes([row]) * 16


def small_catalogue(down: frozenset[bytes] = frozenset()) -> Catalogue:
    """Seven pictures; row r has r % 3 captions."""
    rows = [
        {
            "uid": uid_of(row),
            "url": f"http://example.org/{row}.jpg",
            "captions": [f"caption {i} of {row}" for i in range(row % 3)],
            "shard": 0,
            "shard_row": row,
        }
        for row in range(NUM_PICTURES)
    ]
    pictures = [{"uid": uid_of(row), "picture": jpeg_of(row)} for row in range(NUM_PICTURES)]
    manifest = SimpleNamespace(digest="d" * 64, shards=[SimpleNamespace(num_pictures=NUM_PICTURES)])
    folder, table = Folder.at("index"), pa.Table.from_pylist(rows, PICTURES_SCHEMA)
    index = RetrievalIndex(folder, (Part(folder, manifest),), table, None, object(), down)
    pairs = SimpleNamespace(
        folder=Folder.at("pairs"),
        tombstones=frozenset(),
        shard=lambda _: SimpleNamespace(table=pa.Table.from_pylist(pictures)),
    )
    return Catalogue(index, [pairs])


async def plain_answer(asked: Asked) -> Reply | Refusal:
    """What a replica says that finds the first pictures, whatever is asked."""
    if asked.text == "slow":
        await asyncio.sleep(30)
    if asked.text == "fail":
        raise RuntimeError("a fault of ours")
    if asked.picture is not None:
        try:
            await asyncio.to_thread(store, asked.picture, PictureConfig(max_decoded_px=1_000_000))
        except PictureFault as fault:
            return Refusal(f"picture: cannot be used ({fault})")
    rows = range(min(asked.k, NUM_PICTURES))
    told = [{"rank": row + 1, "score": 1 - row / 10, "uid": uid_of(row).hex()} for row in rows]
    return Reply("d" * 64, [one | {"url": "http://x", "captions": []} for one in told], 1, 0.01)


@pytest.fixture
def serving() -> Iterator[Callable[..., SimpleNamespace]]:
    """Starts servers on loopback, in threads: `serving(answer=..., token=..., **limits)`."""
    with contextlib.ExitStack() as stack:

        def start(*, answer=plain_answer, token=None, names=NAMES, catalogue=None, **limits):
            config = LimitsConfig(**(QUICK | {"max_body_mib": 1} | limits))
            watched = Watched([], catalogue or small_catalogue, 0.0)
            app = make_app(answer, watched, Access(token, names), config, Metrics())
            listener = stack.enter_context(listening("127.0.0.1", 0))
            server = http_server(app, config)
            thread = threading.Thread(
                target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True
            )
            thread.start()
            stack.callback(thread.join, 20)
            stack.callback(setattr, server, "should_exit", True)
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            port = listener.getsockname()[1]
            return SimpleNamespace(port=port, url=f"http://127.0.0.1:{port}", server=server)

        yield start


@pytest.fixture(scope="session")
def make_catalogue() -> Callable[..., Catalogue]:
    """`make_catalogue(down)`: seven pictures, of which some were taken down."""
    return small_catalogue


@pytest.fixture(scope="session")
def uid() -> Callable[[int], bytes]:
    """Of a picture of that catalogue."""
    return uid_of


@pytest.fixture(scope="session")
def jpeg() -> Callable[[int], bytes]:
    """The bytes of a picture of that catalogue."""
    return jpeg_of


@pytest.fixture(scope="session")
def replica(searchable, data) -> Replica:
    """One that answers out of that index, in this process."""
    work = ReplicaWork(
        index=str(searchable),
        places=PlacesConfig(features=(str(data / "features"),)),
        pictures=PictureConfig(),
        max_batch=8,
        max_heavy_batch=4,
        threads=1,
        device="cpu",
    )
    return Replica(work)
