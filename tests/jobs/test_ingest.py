"""Sources that hold the pictures themselves reach the workers and come out of them whole."""

import io
import json
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from jobs.cli import main
from pipeline.accounting import Account
from pipeline.dataset import Dataset
from pipeline.verify import verify

pytestmark = pytest.mark.usefixtures("ray_session")

COUNT = 20


@pytest.fixture
def shown() -> list[np.ndarray]:
    """Pictures of two halves, each darker than the one before."""
    halves = np.repeat([250, 150], 16).reshape(1, 32, 1)
    wide = np.broadcast_to(halves, (32, 32, 3))
    return [(wide - 7 * number).astype(np.uint8) for number in range(COUNT)]


def write_tars(folder: Path, pictures: list[bytes]) -> None:
    for number in range(2):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for row in range(number * COUNT // 2, (number + 1) * COUNT // 2):
                said = json.dumps({"caption": f"caption {row}", "license": f"cc-{row}"})
                for ending, content in (("png", pictures[row]), ("json", said.encode())):
                    info = tarfile.TarInfo(f"{row:03}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def write_table(folder: Path, pictures: list[bytes]) -> None:
    rows = {
        "image": [{"bytes": data, "path": None} for data in pictures],
        "caption": [f"caption {row}" for row in range(COUNT)],
        "license": [f"cc-{row}" for row in range(COUNT)],
    }
    features = datasets.Features(
        {"image": datasets.Image()}
        | {name: datasets.Value("string") for name in ("caption", "license")}
    )
    made = datasets.Dataset.from_dict(rows, features=features)
    made.to_parquet(folder / "0.parquet", batch_size=6)


@pytest.mark.parametrize(("write", "locations"), [(write_tars, "member"), (write_table, "row")])
def test_pictures_inside_a_source_arrive_in_order(tmp_path, shown, write, locations):
    pictures = []
    for picture in shown:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        pictures.append(buffer.getvalue())
    pictures[7] = b"no picture"
    (tmp_path / "source").mkdir()
    write(tmp_path / "source", pictures)
    words = ("ingest", tmp_path / "source", "--out", tmp_path / "raw", "--shard-rows", 6)
    assert main([*map(str, words), "--keep", "license"]) == 0
    raw = Dataset.open(str(tmp_path / "raw"))
    assert list(verify(raw)) == []
    assert raw.manifest.pictures == Account(COUNT, COUNT - 1, {"failed:not_a_picture": 1})
    assert raw.manifest.lineage.config["locations"] == locations
    rows = [row for shard in raw.shards() for row in shard.table.to_pylist()]
    numbers = [number for number in range(COUNT) if number != 7]
    assert [row["captions"][0]["text"] for row in rows] == [f"caption {n}" for n in numbers]
    assert [row["extra"] for row in rows] == [{"license": f"cc-{n}"} for n in numbers]
    for row, number in zip(rows, numbers, strict=True):
        stored = np.asarray(Image.open(io.BytesIO(row["picture"])), int)
        assert abs(stored - shown[number]).mean() < 3  # the next one is 7 away
