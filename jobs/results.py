"""What a command found, as one JSON file."""

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
    folder, name = place_of(out)
    try:
        folder.publish_json(name, result)
    except (ConfigError, OSError) as error:
        raise ConfigError(f"out: {error}") from error


def place_of(file: str) -> tuple[Folder, str]:
    """The folder of a file, given by path or URI, and its name in it; raises as `Folder.at`."""
    whole = Folder.at(file)
    parent, _, name = whole.path.rpartition("/")
    return Folder(whole.fs, parent), name
