"""docs/reproduce-blip2.md: every command is one, and its plan is what is printed."""

import json
import re
import shlex
from pathlib import Path

import pytest

from jobs.cli import main, parse, split_command
from jobs.recipes import RECIPES

DOCS = Path(__file__).parents[2] / "docs" / "reproduce-blip2.md"


def commands() -> list[list[str]]:
    """What the page tells the reader to type."""
    page = DOCS.read_text().replace("\\\n", " ")
    lines = re.findall(r"^    viaduct (.+)$", page, flags=re.MULTILINE)
    return [shlex.split(line) for line in lines]


def test_every_command_is_one():
    said = commands()
    assert len(said) == DOCS.read_text().count("\n    viaduct ") > 15
    for words in said:
        command, options = split_command(words)
        job = parse(command, options)
        if command in RECIPES["blip2-vit-g-opt-2.7b"].keys() - {"plan"}:
            assert "--recipe" in options
        if command == "train-stage1":
            assert (job.loop.steps, job.loop.batch_size) == (250_000, 1680)
        if command == "features":
            assert job.encoder.encoder == "timm:eva_giant_patch14_clip_224.laion400m"
    assert {"capfilt", "select-captions"} < {command for command, *_ in said}


@pytest.mark.slow
def test_the_plan_is_what_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(commands()[0]) == 0
    indented = "".join(
        f"    {line}".rstrip() + "\n" for line in capsys.readouterr().out.splitlines()
    )
    assert indented in DOCS.read_text()


@pytest.mark.slow
def test_the_plan_with_views_is_what_the_table_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = re.findall(r"^\| (\d+) \| (\w+) \| (.+) TB \| (.+) \| (.+) \|$", DOCS.read_text(), re.M)
    assert len(rows) == 4
    for views, dtype, cache, features, whole in rows:
        assert main([*commands()[0], "--views", views, "--dtype", dtype, "--json"]) == 0
        plan = json.loads(capsys.readouterr().out.splitlines()[-1])
        (hours,) = [step["hours"] for step in plan["steps"] if step["name"] == "features"]
        assert f"{plan['caching']['cache_bytes'] / 1e12:.4g}" == cache
        assert f"{hours:.2f}" == features
        assert f"{plan['caching']['cached_hours']:.2f}" == whole
