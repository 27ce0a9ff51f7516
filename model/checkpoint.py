"""Checkpoints: trained weights with what they were made from, in a folder of their own.

checkpoint.json is written last and names the other files with their digests, so a checkpoint
without it does not exist. A training folder holds one for its last step, and a folder
`checkpoints/step-NNNNNN` for each that is kept, each a checkpoint of its own.
"""

import hashlib
from dataclasses import dataclass, replace
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from model.pretrained.encoder_spec import EncoderSpec
from model.qformer import QFormerConfig
from pipeline.errors import ConfigError, DatasetError
from pipeline.lineage import Lineage, canonical_digest
from pipeline.storage import Folder

FORMAT = "viaduct-checkpoint/1"
FILE = "checkpoint.json"
STEPS = "checkpoints"
"""Folder of the checkpoints of single steps, within a training folder."""


@dataclass(frozen=True)
class Checkpoint:
    """What checkpoint.json says; the weights are read on demand."""

    folder: Folder
    stage: int
    """1 or 2"""
    step: int
    """Updates made."""
    config: dict[str, Any]
    """Of the Q-Former; in stage 2 also of the language model, under `language_model`."""
    lineage: Lineage
    files: dict[str, dict[str, str]]
    """Role (`weights`, `optimizer`, `tokenizer`) to name within the folder and SHA-256."""

    @property
    def digest(self) -> str:
        """Covers configuration, lineage, weights and tokenizer; no times, hosts or paths."""
        lasting = ("weights", "tokenizer")
        return canonical_digest(
            {
                "stage": self.stage,
                "config": self.config,
                "lineage": self.lineage.to_json(),
                "files": {r: f["digest"] for r, f in self.files.items() if r in lasting},
            }
        )

    @property
    def summary(self) -> str:
        """One line for people."""
        return f"stage {self.stage}, {self.step:,} steps, digest {self.digest[:16]}"

    @property
    def qformer(self) -> QFormerConfig:
        """Size and shape of the Q-Former."""
        return qformer_of(self.config)

    @property
    def encoder(self) -> EncoderSpec:
        """The vision encoder on whose features it was trained."""
        return EncoderSpec(**self.lineage.frozen["encoder"])

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "digest": self.digest,
            "stage": self.stage,
            "step": self.step,
            "config": self.config,
            "lineage": self.lineage.to_json(),
            "files": self.files,
        }

    @staticmethod
    def open(location: str | Folder, stage: int | None = None) -> "Checkpoint":
        """Open a checkpoint, or the last one of a finished training.

        Args:
            location: path or URI of its folder.
            stage: the stage that is needed; None takes any.

        Raises:
            ConfigError: there is none, or it is of another stage.
            DatasetError: checkpoint.json is damaged.
        """
        folder = location if isinstance(location, Folder) else Folder.at(location)
        value = folder.read_json(FILE)
        if value is None:
            raise ConfigError(_why_none(folder))
        try:
            checkpoint = Checkpoint(
                folder,
                int(value["stage"]),
                int(value["step"]),
                value["config"],
                Lineage.from_json(value["lineage"]),
                value["files"],
            )
            if value["format"] != FORMAT or value["digest"] != checkpoint.digest:
                raise DatasetError(f"{folder}/{FILE}: damaged, or of a later format")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DatasetError(f"{folder}/{FILE}: field missing or wrong: {error}") from error
        if stage is not None and checkpoint.stage != stage:
            raise ConfigError(f"{folder}: is of stage {checkpoint.stage}; stage {stage} is needed")
        return checkpoint

    def read(self, role: str) -> bytes:
        """One of its files, its digest checked.

        Raises:
            DatasetError: it is missing or damaged.
        """
        entry = self.files[role]
        try:
            content = self.folder.read(entry["file"])
        except OSError as error:
            raise DatasetError(f"{self.folder}/{entry['file']}: cannot be read: {error}") from error
        if hashlib.sha256(content).hexdigest() != entry["digest"]:
            raise DatasetError(f"{self.folder}/{entry['file']}: damaged: its digest differs")
        return content

    def tensors(self, role: str = "weights") -> dict[str, Tensor]:
        """The tensors of one of its safetensors files, on the CPU; raises as `read`."""
        try:
            return load(self.read(role))
        except SafetensorError as error:
            raise DatasetError(f"{self.folder}: {role}: {error}") from error


def qformer_of(config: dict[str, Any]) -> QFormerConfig:
    """What a checkpoint's configuration says of the Q-Former."""
    return QFormerConfig(**{key: v for key, v in config.items() if key != "language_model"})


def write_checkpoint(checkpoint: Checkpoint, contents: dict[str, bytes]) -> Checkpoint:
    """Write the files, then checkpoint.json.

    Args:
        checkpoint: without files.
        contents: role to content.

    Returns:
        The checkpoint with its files.
    """
    files = {}
    for role, content in contents.items():
        name = f"{role}.{'json' if role == 'tokenizer' else 'safetensors'}"
        checkpoint.folder.publish(name, content)
        files[role] = {"file": name, "digest": hashlib.sha256(content).hexdigest()}
    written = replace(checkpoint, files=files)
    checkpoint.folder.publish_json(FILE, written.to_json())
    return written


def publish_last(training: Folder, last: Checkpoint) -> Checkpoint:
    """Make the checkpoint of the last step that of the whole training folder."""
    place = f"{STEPS}/{last.folder.name}"
    files = {
        role: entry | {"file": f"{place}/{entry['file']}"} for role, entry in last.files.items()
    }
    whole = replace(last, folder=training, files=files)
    training.publish_json(FILE, whole.to_json())
    return whole


def step_folder(training: Folder, step: int) -> Folder:
    return training / STEPS / f"step-{step:06d}"


def kept_steps(training: Folder) -> list[Checkpoint]:
    """The whole checkpoints of single steps in a training folder, the last one at the end."""
    home = training / STEPS
    found = (home / name for name in home.entries() if name.startswith("step-"))
    kept = [Checkpoint.open(folder) for folder in found if folder.size(FILE) is not None]
    return sorted(kept, key=lambda checkpoint: checkpoint.step)


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU that no later update changes."""
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}


def save_tensors(tensors: dict[str, Tensor]) -> bytes:
    """Tensors as a safetensors file."""
    return save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})


def _why_none(folder: Folder) -> str:
    if not folder.exists():
        return f"{folder}: no such folder"
    kept = kept_steps(folder)
    if kept:
        return (
            f"{folder}: its training is not finished; run it again, or name one of its "
            f"checkpoints, such as {STEPS}/{kept[-1].folder.name}"
        )
    return f"{folder}: no checkpoint (it has no {FILE})"
