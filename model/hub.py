"""Folders as transformers writes them, here or on its hub: where they are, and their tensors."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.errors import ConfigError, first_line
from pipeline.lineage import canonical_digest
from pipeline.storage import Folder

_NEEDED = ["*.json", "*.txt", "*.model", "*.safetensors"]


def expanded(name: str) -> str:
    """A folder or a name on the hub, as transformers takes it; of a folder `~` is resolved."""
    return str(Path(name).expanduser()) if name.startswith("~") else name


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


def read_tensors(
    folder: Path, wanted: Callable[[str], bool]
) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of a folder's .safetensors files, on the CPU.

    Args:
        folder: of a checkpoint, in one file or several.
        wanted: which names to read.

    Returns:
        What is wanted, and the names of the others.

    Raises:
        ConfigError: there are no such files, or one is damaged.
    """
    tensors: dict[str, Tensor] = {}
    others: list[str] = []
    for file in _files(folder):
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - it is no mapping
                    if wanted(name):
                        tensors[name] = opened.get_tensor(name)
                    else:
                        others.append(name)
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{file}: cannot be read ({first_line(error)})") from error
    return tensors, others


def tensors_digest(folder: Path, wanted: Callable[[str], bool]) -> str:
    """SHA-256 over names, types, shapes and values of some of a folder's tensors, one by one."""
    digests = {}
    for file in _files(folder):
        with safe_open(file, framework="pt") as opened:
            for name in filter(wanted, opened.keys()):
                value = opened.get_tensor(name)
                sha = hashlib.sha256(f"{value.dtype} {tuple(value.shape)}".encode())
                sha.update(value.contiguous().view(-1).view(torch.uint8).numpy())
                digests[name] = sha.hexdigest()
    return canonical_digest(digests)


def folder_digest(folder: Path) -> str:
    """Of a checkpoint's weights and its configuration, as bytes."""
    home = Folder.at(str(folder))
    files = [*_files(folder), *folder.glob("config.json")]
    return canonical_digest({file.name: home.digest(file.name) for file in files})


def _files(folder: Path) -> list[Path]:
    """Of weights: `model.safetensors`, or `model-00001-of-00002.safetensors` and so on."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise ConfigError(f"{folder}: holds no model*.safetensors")
    return files
