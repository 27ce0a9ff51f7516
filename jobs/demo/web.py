"""A procedural web on loopback HTTP, with the web's faults planted and known."""

import http.server
import io
import json
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs.demo.painting import paint
from jobs.demo.scenes import WORLDS, Scene, World, describe, draw_scene

FAULTS = {
    "missing": 0.04,
    "html": 0.03,
    "truncated": 0.03,
    "duplicate": 0.08,
    "wrong_caption": 0.05,
    "says_nothing": 0.05,
}
"""Kind of fault to the share of pages that have it."""

_NOTHING = ("", "IMG_{n}.png", "photo", "click here", "untitled", "image {n} of 500")


@dataclass(frozen=True)
class Page:
    """One row of the web: an address, its captions, and what is wrong with it."""

    path: str
    captions: tuple[str, ...]
    fault: str | None
    scene: Scene
    """What it shows; a duplicate shows an earlier page's."""


def make_pages(count: int, seed: int, worlds: tuple[World, ...] = WORLDS) -> list[Page]:
    """`count` pages, each with a scene of its own but the duplicates."""
    scenes = [draw_scene(number, seed, worlds) for number in range(count)]
    rng = np.random.default_rng((seed, 1 << 20))
    kinds = [None, *FAULTS]
    shares = [1 - sum(FAULTS.values()), *FAULTS.values()]
    faults = rng.choice(len(kinds), size=count, p=shares)
    good: list[int] = []  # pages that arrive, of which there can be duplicates
    pages = []
    for number in range(count):
        fault = kinds[faults[number]]
        if fault == "duplicate" and not good:
            fault = None
        shown = int(rng.choice(good)) if fault == "duplicate" else number
        if fault not in ("missing", "html", "truncated", "duplicate"):
            good.append(number)
        captions = _captions(fault, shown, scenes, rng)
        pages.append(Page(f"/pictures/{number:06d}.png", captions, fault, scenes[shown]))
    return pages


def make_clean_pages(
    count: int, first: int, seed: int, worlds: tuple[World, ...] = WORLDS
) -> list[Page]:
    """`count` pages without a fault, of the scenes from that number on, which no other page shows.

    They stand for pairs that people wrote or checked.
    """
    rng = np.random.default_rng((seed, 1 << 21))
    scenes = {number: draw_scene(number, seed, worlds) for number in range(first, first + count)}
    return [
        Page(f"/clean/{number:06d}.png", tuple(describe(scene, rng)), None, scene)
        for number, scene in scenes.items()
    ]


def _captions(
    fault: str | None, shown: int, scenes: list[Scene], rng: np.random.Generator
) -> tuple[str, ...]:
    if fault == "says_nothing":
        return (str(rng.choice(_NOTHING)).format(n=shown),)
    off = int(rng.integers(1, len(scenes))) if fault == "wrong_caption" else 0
    return tuple(describe(scenes[(shown + off) % len(scenes)], rng))


def num_planted(pages: Sequence[Page]) -> Counter[str]:
    """How many pages have each kind of fault."""
    return Counter(page.fault for page in pages if page.fault)


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Tell of errors, but not of clients that hang up: each ends its connections so."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def served(pages: list[Page]) -> Iterator[str]:
    """The web on loopback; yields its address. Pictures are painted as they are asked for."""
    by_path = {page.path: page for page in pages}

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            page = by_path.get(self.path)
            if page is None or page.fault == "missing":
                self._answer(404, "text/plain", b"not found")
            elif page.fault == "html":
                self._answer(200, "image/png", b"<!doctype html><title>sorry</title>")
            else:
                body = _png(page.scene)
                if page.fault == "truncated":
                    body = body[: len(body) // 2]
                self._answer(200, "image/png", body)

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            """Ingest's ledger is log enough."""

    server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def write_urls(pages: list[Page], address: str, file: Path) -> None:
    """The table that a user would have: URLs and captions."""
    lines = [json.dumps({"url": address + page.path, "captions": page.captions}) for page in pages]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _png(scene: Scene) -> bytes:
    buffer = io.BytesIO()
    paint(scene).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
