"""Measures `viaduct serve` under load on loopback: p50, p99 and queries a second.

    python benchmarks/serve.py [--index runs/demo/index] [--features runs/demo/features]
        [--replicas N] [--seconds S]

Starts the command on an index, by default that of `make demo`, and asks it in several ways, each
for a bounded time, from as many clients at once as the table says; a client asks again when it is
answered. Words are captions of the index. The clients run beside the server, on the same cores.
`hostile` are clients that send half a head, half a body, or nonsense, anew as soon as they are
refused, beside 16 that search by words.

Every answer must be 200, but those of hostile clients. The last line is one JSON object: of 16
clients that search by words p50_ms, p99_ms and queries_per_s; p50 of one alone; and p99 of 16
beside hostile clients.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp
import numpy as np

from indexes.retrieval import RetrievalIndex

WARM_UP_S = 2.0
START_S = 300.0
MAX_ANSWERS = 50_000
"""Of a row of the table; with the time this bounds the load."""
K = 12
HALF = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ",
    b"POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"
    b"Content-Length: 100000\r\n\r\n" + bytes(1000),
    b"\x00\x01\x02 nonsense\r\n\r\n",
)

Search = Callable[[aiohttp.ClientSession], Awaitable[None]]


@dataclass(frozen=True)
class Measured:
    """One row of the table."""

    name: str
    clients: int
    seconds: list[float]
    """Of each answer."""
    wall_s: float

    def percentile_ms(self, share: float) -> float:
        return float(np.percentile(self.seconds, share)) * 1000

    @property
    def per_s(self) -> float:
        return len(self.seconds) / self.wall_s


@contextlib.contextmanager
def served(index: str, features: str | None, replicas: int) -> Iterator[str]:
    """The address of a server of its own, which ends with the block."""
    command = [sys.executable, "-m", "jobs.cli", "serve", index, "--port", "0"]
    command += ["--replicas", str(replicas)]
    command += ["--features", features] if features else []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    timer = threading.Timer(START_S, process.kill)
    timer.start()
    try:
        address = process.stdout.readline().strip() if process.stdout else ""
        if not address:
            raise SystemExit("the server did not start")
        timer.cancel()
        yield address.rstrip("/")
    finally:
        timer.cancel()
        process.send_signal(signal.SIGTERM)
        process.wait(60)


async def load(name: str, address: str, clients: int, seconds: float, search: Search) -> Measured:
    """Clients that search without a pause until the time is over."""
    taken: list[float] = []
    begun = time.perf_counter()
    counts_from, end = begun + WARM_UP_S, begun + WARM_UP_S + seconds

    async def client(session: aiohttp.ClientSession) -> None:
        while (asked := time.perf_counter()) < end and len(taken) < MAX_ANSWERS:
            await search(session)
            if asked >= counts_from:
                taken.append(time.perf_counter() - asked)

    connector = aiohttp.TCPConnector(limit=clients)
    async with aiohttp.ClientSession(address, connector=connector) as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))
    return Measured(name, clients, taken, time.perf_counter() - counts_from)


async def ask(session: aiohttp.ClientSession, **fields: object) -> None:
    async with session.post("/v1/search", json=fields) as answer:
        found = await answer.json()
        if answer.status != 200 or not found["results"]:
            raise SystemExit(f"{fields}: {answer.status}: {found}")


async def upload(session: aiohttp.ClientSession, jpeg: bytes) -> None:
    kind = {"content-type": "image/jpeg"}
    async with session.post(f"/v1/search?k={K}", data=jpeg, headers=kind) as answer:
        if answer.status != 200:
            raise SystemExit(f"a picture: {answer.status}: {await answer.text()}")


@contextlib.asynccontextmanager
async def hostile(address: str, clients: int) -> AsyncIterator[None]:
    """Clients that hold connections open, or send nonsense, while the block runs."""
    place = urlsplit(address)

    async def client(number: int) -> None:
        while True:
            with contextlib.suppress(ConnectionError):
                reader, writer = await asyncio.open_connection(place.hostname, place.port)
                writer.write(HALF[number % len(HALF)])
                await reader.read()
                writer.close()
            await asyncio.sleep(0.05)

    tasks = [asyncio.create_task(client(number)) for number in range(clients)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def measure(
    address: str, index: RetrievalIndex, seconds: float, *, with_rerank: bool
) -> list[Measured]:
    texts, uids = texts_and_uids(index)
    async with aiohttp.ClientSession(address) as session:
        async with session.get(f"/v1/pairs/{next(uids)}/picture") as answer:
            jpeg = await answer.read()

    async def words(session: aiohttp.ClientSession) -> None:
        await ask(session, text=next(texts), k=K)

    async def like(session: aiohttp.ClientSession) -> None:
        await ask(session, uid=next(uids), k=K)

    async def picture(session: aiohttp.ClientSession) -> None:
        await upload(session, jpeg)

    async def reranked(session: aiohttp.ClientSession) -> None:
        await ask(session, text=next(texts), k=K, rerank=32)

    rows = [
        ("words", 1, words),
        ("words", 16, words),
        ("words", 48, words),
        ("an indexed picture", 4, like),
        ("a picture file", 4, picture),
    ]
    rows += [("words, 32 re-ranked", 4, reranked)] if with_rerank else []
    measured = [await load(name, address, n, seconds, search) for name, n, search in rows]
    async with hostile(address, 100):
        measured.append(await load("words, 100 hostile", address, 16, seconds, words))
    return measured


def texts_and_uids(index: RetrievalIndex) -> tuple[Iterator[str], Iterator[str]]:
    """Captions and pictures, in a drawn order, over and over."""
    captions = [text for its in index.pictures.column("captions").to_pylist() for text in its]
    uids = [uid.hex() for uid in index.pictures.column("uid").to_pylist()]
    random.Random(0).shuffle(captions)
    random.Random(1).shuffle(uids)
    return itertools.cycle(captions), itertools.cycle(uids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--index", default="runs/demo/index")
    parser.add_argument("--features", default="runs/demo/features")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    index = RetrievalIndex.open(options.index)
    features = options.features if os.path.isdir(options.features) else None
    print(index.summary)
    with served(options.index, features, options.replicas) as address:
        rows = asyncio.run(
            measure(address, index, options.seconds, with_rerank=features is not None)
        )
    print("| search by | clients | p50 ms | p99 ms | queries/s |\n|---|---|---|---|---|")
    for row in rows:
        percentiles = f"{row.percentile_ms(50):.1f} | {row.percentile_ms(99):.1f}"
        print(f"| {row.name} | {row.clients} | {percentiles} | {row.per_s:.0f} |")
    alone, many, beside = rows[0], rows[1], rows[-1]
    told = {
        "p50_ms": many.percentile_ms(50),
        "p99_ms": many.percentile_ms(99),
        "queries_per_s": many.per_s,
        "p50_alone_ms": alone.percentile_ms(50),
        "p99_hostile_ms": beside.percentile_ms(99),
    }
    print(json.dumps({name: round(value, 2) for name, value in told.items()}))


if __name__ == "__main__":
    main()
