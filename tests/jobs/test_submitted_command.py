"""A command for a cluster is read, checked and made independent of this machine before it goes."""

import logging
from dataclasses import fields, is_dataclass
from typing import get_type_hints

import pytest

from jobs import settings
from jobs.cli import COMMANDS, job_of, main, parse
from jobs.ingest import Ingest
from jobs.submitted_command import PLACES, submitted_command
from pipeline.errors import ConfigError

NAME_NO_PLACE = {
    *("address", "annotation_split", "caption_column", "contact", "cache", "control", "encoder"),
    *("file_column", "host", "keep", "language_model", "languages", "losses", "picture_column"),
    *("prompt", "question", "rates_file", "retry_classes", "split_salt", "start", "texts"),
    *("tokenizer", "url_column", "user_agent", "wandb", "allow_host", "command", "name"),
}
"""Text fields that a cluster reads as this machine does; the cache is each machine's own."""


def text_fields(job: type) -> set[str]:
    """Names of the fields that hold text, with those of what a job is composed of."""
    found = set()
    hints = get_type_hints(job)
    for field in fields(job):
        kind = hints[field.name]
        if is_dataclass(kind):
            found |= text_fields(kind)
        elif kind in (str, str | None, tuple[str, ...]):
            found.add(field.name)
    return found


def test_each_text_field_of_each_job_is_known_to_name_a_place_or_not():
    names = set().union(*(text_fields(job_of(command)) for command in COMMANDS))
    assert names == PLACES | NAME_NO_PLACE
    assert not PLACES & NAME_NO_PLACE


def test_a_command_goes_as_it_was_typed():
    words = ["ingest", "s3://b/urls.parquet", "--out", "s3://b/raw", "--shard-rows", "7"]
    assert submitted_command(words).words == tuple(words)
    assert submitted_command(["viaduct", *words]).words == tuple(words)
    command = submitted_command(["evaluate", "captions", "s3://b/c.json", "--captions", "s3://b/p"])
    assert command.name == "evaluate captions"
    assert command.words[:2] == ("evaluate", "captions")


def test_who_leaves_the_work_to_workers():
    assert not submitted_command(["ingest", "s3://b/u.csv", "--out", "s3://b/raw"]).computes_itself
    assert submitted_command(["inspect", "s3://b/raw", "--verify"]).computes_itself


def test_a_saved_configuration_is_read_here(tmp_path):
    job = Ingest(source="s3://b/urls.csv", out="s3://b/raw", shard_rows=7)
    (tmp_path / "config.yaml").write_bytes(settings.to_yaml(job))
    saved = ("--config", f"{tmp_path}/config.yaml", "--shard-rows", "9")
    words = submitted_command(["ingest", *saved]).words
    assert "--config" not in words
    (tmp_path / "config.yaml").unlink()
    sent = parse(words[0], list(words[1:]))
    assert (sent.source, sent.out, sent.shard_rows) == (job.source, job.out, 9)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "none is given"),
        (["viaduct"], "none is given"),
        (["ingets", "x"], "ingets: no such command; one of ingest"),
        (["ingest", "s3://b/u.csv", "--out", "s3://b/raw", "--bogus"], "--bogus"),
        (["ingest", "s3://b/u.csv", "--out", "s3://b/raw", "--shard-rows", "0"], "shard_rows: 0"),
        (["ingest", "s3://b/u.csv", "--out", "runs/raw"], "out: 'runs/raw' is a path on this"),
        (["curate", "s3://b/raw", "raw-2", "--out", "s3://b/p"], "raws: 'raw-2' is a path"),
        (["report", "."], "run_folder: '.' is a path"),
        (["demo"], "`viaduct demo` runs here only"),
        (["submit", "--", "ingest"], "`viaduct submit` runs here only"),
        (["runs", "stop", "x"], "`viaduct runs stop` runs here only"),
    ],
)
def test_what_cannot_run_on_a_cluster_is_one_line_now(words, says):
    with pytest.raises(ConfigError) as raised:
        submitted_command(words)
    assert says in str(raised.value)


def test_names_of_weights_and_judges_are_no_places(caplog):
    submitted_command(
        [
            "features",
            "s3://b/p",
            "--out",
            "s3://b/f",
            "--encoder",
            "timm:vit",
            "--weights",
            "random",
        ]
    )
    data = ("--features", "s3://b/f", "--pairs", "s3://b/p", "--out", "s3://b/c")
    submitted_command(["capfilt", *data, "--judge", "clip:openai/clip-vit-base-patch32"])
    submitted_command(["select-captions", "s3://b/c", "--out", "s3://b/d", "--judge", "a"])
    assert not caplog.records


def test_folders_that_all_nodes_must_share_are_named(caplog):
    with caplog.at_level(logging.WARNING):
        submitted_command(["ingest", "/nfs/urls.csv", "--out", "file:///nfs/raw"])
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "ingest: source: every node must see the same at /nfs/urls.csv",
        "ingest: out: every node must see the same at file:///nfs/raw",
    ]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--name", "a b"], "name: 'a b'"),
        (["--driver-cpus", "-1"], "driver_cpus: -1"),
        (["--address", "10.0.0.1:8265"], "address: '10.0.0.1:8265' is no URL"),
        (["--address", "http://127.0.0.1:9"], "no dashboard of a Ray cluster answers at"),
    ],
)
def test_wrong_options_of_a_submission(options, says, capsys, monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")  # what is given goes first
    assert main(["submit", *options, "--", "ingest", "s3://b/u.csv", "--out", "s3://b/raw"]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("viaduct")]
    assert len(said) == 1
    assert says in said[0]


def test_options_behind_the_dashes_are_of_the_command(capsys):
    """A saved configuration of the command is none of `submit` itself."""
    assert main(["submit", "--", "ingest", "--config", "nowhere.yaml"]) == 2
    assert "viaduct submit: ingest: nowhere.yaml: cannot be read" in capsys.readouterr().err
