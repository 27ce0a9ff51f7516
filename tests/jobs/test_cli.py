"""Wrong input is one clear line and exit code 2, and leaves what was there as it was."""

import json
import re

import pytest
import yaml

from jobs import settings
from jobs.cli import COMMANDS, main, parse
from jobs.ingest import Ingest


@pytest.fixture
def fails(capsys):
    """Runs a command that must fail with exit code 2 and one line; returns the line."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if line.startswith("viaduct")]
        assert len(lines) == 1
        assert "Traceback" not in out + err
        return lines[0]

    return run


def test_help_of_every_command_shows_each_option_with_its_default(capsys):
    for command in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            main([*command.split(), "--help"])
        assert stop.value.code == 0
        text = capsys.readouterr().out
        options = re.findall(r"^\S* ?--([a-z-]+)", text, flags=re.MULTILINE)
        assert options
        # An option that says neither its default nor that it is required helps nobody.
        described = text.count("(default:") + text.count("(required)")
        assert described >= len(set(options) - {"help"})


def test_the_overview_names_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)


def test_a_command_of_two_words_is_no_argument_of_the_first(fails):
    said = fails("evaluate", "captions")
    assert said.startswith("viaduct evaluate captions: ")
    assert "--captions" in said
    needed = ("--checkpoint", "nowhere", "--features", "y", "--captions", "z")
    assert "viaduct evaluate: " in fails("evaluate", "./captions", *needed)


def test_no_command_and_unknown_commands(fails, capsys):
    assert main([]) == 2
    assert "no such command; one of ingest" in fails("ingets")


def test_unknown_options_and_wrong_values(fails):
    assert "--bogus" in fails("ingest", "x", "--out", "y", "--bogus", "3")
    assert "--shard-rows" in fails("ingest", "x", "--out", "y", "--shard-rows", "many")
    assert "--out" in fails("ingest", "x")
    assert "shard_rows: 0 is not positive" in fails("ingest", "x", "--out", "y", "--shard-rows", 0)
    assert "jpeg_quality: 101" in fails("ingest", "x", "--out", "y", "--jpeg-quality", 101)
    assert "test_share: 2.0" in fails("curate", "x", "--out", "y", "--test-share", 2)
    assert "cpus: 0 is not positive" in fails("ingest", "x", "--out", "y", "--cpus", 0)
    assert "layer: 1" in fails("features", "x", "--out", "y", "--layer", 1)


def test_sources_that_are_not_there_or_lack_a_column(fails, tmp_path):
    out = tmp_path / "raw"
    assert "nowhere.csv: no such file" in fails("ingest", tmp_path / "nowhere.csv", "--out", out)
    table = tmp_path / "urls.csv"
    table.write_text("link,caption\nhttp://x/a.jpg,a\n")
    assert "urls.csv: has no column 'url' or 'file'" in fails("ingest", table, "--out", out)
    line = fails("ingest", table, "--out", out, "--url-column", "link", "--caption-column", "alt")
    assert "urls.csv: has no column 'alt', only ['link', 'caption']" in line
    (tmp_path / "urls.docx").write_text("x")
    assert "urls.docx: is '.docx'" in fails("ingest", tmp_path / "urls.docx", "--out", out)
    (tmp_path / "empty").mkdir()
    assert "holds neither tables nor pictures" in fails("ingest", tmp_path / "empty", "--out", out)
    assert not out.exists()


def test_datasets_that_are_not_there_or_of_another_kind(fails, tmp_path):
    assert "no such folder" in fails("curate", tmp_path / "raw", "--out", tmp_path / "pairs")
    assert "no such folder" in fails("features", tmp_path / "pairs", "--out", tmp_path / "features")
    assert "no such folder" in fails("inspect", tmp_path / "pairs")
    assert not (tmp_path / "features").exists()


def test_a_saved_configuration_runs_again_and_later_options_override_it(tmp_path):
    job = Ingest(source="pairs.jsonl", out="raw", shard_rows=7)
    file = tmp_path / "config.yaml"
    file.write_bytes(settings.to_yaml(job))
    assert parse("ingest", ["--config", str(file)]) == job
    assert parse("ingest", [f"--config={file}"]) == job
    changed = parse("ingest", ["--config", str(file), "--shard-rows", "9"])
    assert changed.shard_rows == 9
    assert changed.source == "pairs.jsonl"


def test_a_demo_removes_only_what_a_demo_made(fails, tmp_path):
    (tmp_path / "urls.jsonl").write_text("mine")
    line = fails("demo", "--out", tmp_path, "--pages", 10)
    assert "exists and is no demo's folder" in line
    assert (tmp_path / "urls.jsonl").read_text() == "mine"


def test_a_saved_configuration_that_is_wrong_is_named(fails, tmp_path):
    file = tmp_path / "config.yaml"
    assert "config.yaml: cannot be read" in fails("ingest", "--config", file)
    file.write_text("just text")
    assert "config.yaml: holds no mapping" in fails("ingest", "--config", file)
    file.write_text(yaml.safe_dump({"source": "x", "out": "y", "colour": "red"}))
    assert "--colour" in fails("ingest", "--config", file)
    assert "--config: names no file" in fails("ingest", "--config")


def test_a_folder_with_other_files_is_refused_and_left_alone(fails, tmp_path, make_folder):
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter.tex").write_text("x")
    assert "holds chapter.tex and no dataset" in fails("ingest", make_folder(3), "--out", out)
    assert [path.name for path in out.iterdir()] == ["chapter.tex"]


def test_inspect_of_a_damaged_manifest(fails, tmp_path):
    (tmp_path / "dataset.json").write_text("{")
    assert "dataset.json: not JSON" in fails("inspect", tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps({"format": "viaduct/1"}))
    assert "dataset.json: field missing or wrong: 'captions'" in fails("inspect", tmp_path)
