"""The code that travels with a submitted command, in a folder of its own: packages and no data."""

import importlib.util
import shutil
from importlib import metadata
from pathlib import Path

PACKAGES = ("pipeline", "model", "jobs", "indexes")


def copy_code(folder: Path) -> None:
    """Copy the packages that this process runs into a folder, with what their data files are.

    A line of metadata goes with them, so that a run's log can tell Viaduct's version on machines
    where it is not installed.
    """
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        shutil.copytree(
            Path(spec.origin).parent, folder / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    version = metadata.version("viaduct")
    told = folder / f"viaduct-{version}.dist-info" / "METADATA"
    told.parent.mkdir()
    told.write_text(f"Metadata-Version: 2.1\nName: viaduct\nVersion: {version}\n")
