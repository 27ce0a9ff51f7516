"""Files of lines: cut back to a step, on a local disk and elsewhere."""

import json

import pyarrow.fs as pafs
import pytest

from jobs.training.step_lines import StepLines
from pipeline.storage import Folder


@pytest.fixture(params=["local", "remote"])
def folder(request, tmp_path) -> Folder:
    if request.param == "local":
        return Folder.at(tmp_path)
    (tmp_path / "out").mkdir()
    return Folder(pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), "out")


def read(folder: Folder) -> list[dict]:
    return [json.loads(line) for line in folder.read("x.jsonl").decode().splitlines()]


def test_who_goes_on_finds_the_lines_up_to_its_step(folder):
    lines = StepLines(folder, "x.jsonl", 0)
    for step in (1, 2, 2, 3):
        lines.add(step, {"caption": "a caf\u00e9"})
    lines.flush()
    assert read(folder) == [{"step": step, "caption": "a caf\u00e9"} for step in (1, 2, 2, 3)]
    again = StepLines(folder, "x.jsonl", 2)
    assert [line["step"] for line in read(folder)] == [1, 2, 2]
    assert again.read() == read(folder)


def test_a_line_that_was_cut_off_is_left_out(folder):
    folder.publish("x.jsonl", b'{"step": 1}\n{"step": 2, "lo')
    StepLines(folder, "x.jsonl", 5)
    assert read(folder) == [{"step": 1}]


def test_without_lines_there_is_no_file(folder):
    StepLines(folder, "x.jsonl", 0).flush()
    assert folder.size("x.jsonl") is None


def test_a_local_line_is_there_at_once(tmp_path):
    StepLines(Folder.at(tmp_path), "x.jsonl", 0).add(1, {"loss": 0.5})
    assert read(Folder.at(tmp_path)) == [{"step": 1, "loss": 0.5}]
