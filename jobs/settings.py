"""A job's configuration as flat names and values: what its flags are, and config.yaml holds."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import ConfigError

FILE = "config.yaml"


def flat(config: Any) -> dict[str, Any]:
    """A configuration dataclass, with those it is composed of, as one mapping of names."""
    values: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            values |= flat(value)
        else:
            values[field.name] = list(value) if isinstance(value, tuple) else value
    return values


def to_yaml(config: Any) -> bytes:
    """The resolved configuration; `--config` runs it again."""
    return yaml.safe_dump(flat(config), sort_keys=False, allow_unicode=True).encode()


def read(path: str) -> dict[str, Any]:
    """A saved configuration.

    Raises:
        ConfigError: the file is absent or no YAML of a flat mapping.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds no mapping of option names to values")
    return values


def to_arguments(values: Mapping[str, Any], positional: tuple[str, ...]) -> list[str]:
    """A flat configuration as command-line arguments.

    Args:
        values: by the names of fields.
        positional: names of the fields that are given without a flag.
    """
    arguments: list[str] = []
    for name in positional:
        arguments += _words(values.get(name, []))
    for name, value in values.items():
        flag = str(name).replace("_", "-")
        if name in positional:
            continue
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            arguments += [f"--{flag}", *_words(value)]
    return arguments


def _words(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]
