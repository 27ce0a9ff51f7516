"""Where a model is that goes by its name: a folder, transformers' hub, or a pip package."""

from collections.abc import Callable
from pathlib import Path

from huggingface_hub import snapshot_download

from model.pretrained import offline
from pipeline.errors import ConfigError, first_line

_NEEDED = ["*.json", "*.txt", "*.model", "*.safetensors"]


def local_folder(name: str) -> Path:
    """A folder, or that of a name on the hub, fetched if it is not here yet.

    Raises:
        ConfigError: there is none, or it cannot be fetched.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ConfigError(f"{name}: no such folder")
    try:
        return Path(snapshot_download(name, allow_patterns=_NEEDED))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{name}: no such folder, and cannot be fetched ({first_line(error)})"
        ) from error


def text_folder(name: str) -> str:
    """Where transformers finds a text model: `hf:NAME_OR_FOLDER` or `offline:minilm`.

    Raises:
        ConfigError: the name is neither, or its package is not installed.
    """
    return _folder(name, "offline:minilm", offline.minilm)


def language_folder(name: str) -> str:
    """Where transformers finds a language model: `hf:NAME_OR_FOLDER` or `offline:smollm2`.

    Raises:
        ConfigError: the name is neither, or its package is not installed.
    """
    return _folder(name, "offline:smollm2", offline.smollm2, field="language_model: ")


def _folder(name: str, packaged: str, unpacked: Callable[[], Path], *, field: str = "") -> str:
    kind, _, rest = name.partition(":")
    if kind == "hf" and rest:
        return _expanded(rest)
    if name == packaged:
        return str(unpacked())
    raise ConfigError(f"{field}{name!r} is neither hf:NAME_OR_FOLDER nor {packaged}")


def _expanded(name: str) -> str:
    """A folder or a name on the hub, as transformers takes it; of a folder `~` is resolved."""
    return str(Path(name).expanduser()) if name.startswith("~") else name
