"""What a command found, as one JSON file."""

from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.storage import Folder


def publish_result(out: str, result: dict[str, Any]) -> None:
    """Write a result to a file, whole or not at all.

    Args:
        out: path or URI of the file.
        result: JSON.

    Raises:
        ConfigError: it cannot be written.
    """
    parent, name = out.rsplit("/", 1) if "://" in out else (str(Path(out).parent), Path(out).name)
    try:
        Folder.at(parent).publish_json(name, result)
    except OSError as error:
        raise ConfigError(f"out: {out}: {error.strerror or error}") from error
