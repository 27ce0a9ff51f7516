"""What is sent to a cluster runs there by itself, and is code alone."""

import subprocess
import sys

from jobs.shipped_code import copy_code


def test_the_code_runs_from_its_copy_and_tells_its_version(tmp_path):
    copy_code(tmp_path)
    prints = (
        "import importlib.metadata, jobs.cli, jobs.serve, pipeline;"
        "print(jobs.cli.__file__, pipeline.__file__, importlib.metadata.version('viaduct'))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", prints],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    cli, pipeline, version = ran.stdout.split()
    assert cli == str(tmp_path / "jobs/cli.py")
    assert pipeline == str(tmp_path / "pipeline/__init__.py")
    assert version[0].isdigit()


def test_no_data_goes_with_it(tmp_path):
    copy_code(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    endings = {path.suffix for path in files if path.name != "METADATA"}
    assert endings == {".py", ".jinja", ".html", ".css", ".js", ".svg"}
    assert sum(path.stat().st_size for path in files) < 3 << 20
    assert not list(tmp_path.rglob("__pycache__"))
