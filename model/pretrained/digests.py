"""By what weights are known again: digests of a model, of a folder's tensors, of a folder."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from model.pretrained.weight_files import weight_files
from pipeline.lineage import canonical_digest
from pipeline.storage import Folder


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over the state dict, by name."""
    sha = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        sha.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return sha.hexdigest()


def tensors_digest(folder: Path, wanted: Callable[[str], bool]) -> str:
    """SHA-256 over names, types, shapes and values of some of a folder's tensors, one by one."""
    digests = {}
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as opened:
            for name in filter(wanted, opened.keys()):
                value = opened.get_tensor(name)
                sha = hashlib.sha256(f"{value.dtype} {tuple(value.shape)}".encode())
                sha.update(value.contiguous().view(-1).view(torch.uint8).numpy())
                digests[name] = sha.hexdigest()
    return canonical_digest(digests)


def folder_digest(folder: Path, *others: str) -> str:
    """Of a checkpoint's weights and its configuration, as bytes.

    Args:
        folder: of the checkpoint.
        others: patterns of what else counts; by default config.json alone does.
    """
    home = Folder.at(str(folder))
    patterns = others or ("config.json",)
    files = [*weight_files(folder), *(file for its in patterns for file in folder.glob(its))]
    return canonical_digest({file.name: home.digest(file.name) for file in files})
