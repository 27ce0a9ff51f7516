"""What all tests share: one Ray session, a folder of small pictures, and a loopback web."""

import functools
import http.server
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

settings.register_profile("viaduct", deadline=None)  # a busy machine is no failure
settings.load_profile("viaduct")


@pytest.fixture(scope="session")
def ray_session():
    """Ray with two cores; jobs that run in this process find it and use it."""
    import ray

    ray.init(num_cpus=2, object_store_memory=200 << 20, include_dashboard=False)
    yield
    ray.shutdown()


def draw(number: int, size: tuple[int, int] = (48, 32)) -> Image.Image:
    """A picture that is a function of its number."""
    pixels = np.random.default_rng(number).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)


@pytest.fixture(scope="session")
def draw_folder():
    """Makes a source folder: `count` pictures, every seventh like the one before it."""

    def make(folder: Path, count: int) -> Path:
        (folder / "images").mkdir(parents=True)
        lines = []
        for number in range(count):
            shown = number - 1 if number % 7 == 6 else number
            file = f"images/{number:04d}.png"
            draw(shown).save(folder / file)
            captions = [f"picture number {number}", f"  picture\tof {shown} ", ""][: number % 4]
            lines.append(json.dumps({"file": file, "captions": captions}))
        (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
        return folder

    return make


@pytest.fixture
def make_folder(tmp_path, draw_folder):
    """Makes a source folder below the test's own folder."""
    return lambda count, name="source": draw_folder(tmp_path / name, count)


@pytest.fixture
def serve():
    """Serves a folder on loopback HTTP; returns its address."""
    servers = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    def start(folder: Path) -> str:
        handler = functools.partial(Quiet, directory=str(folder))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
