"""Checkpoints: trained weights with what they were made from, in a folder of their own.

checkpoint.json is written last and names the other files with their digests, so a checkpoint
without it does not exist. A training folder holds one for its last step, and a folder
`checkpoints/step-NNNNNN` for each that is kept, each a checkpoint of its own.
"""

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from model.pretrained.digests import weights_digest
from model.pretrained.encoders import EncoderConfig, EncoderSpec, VisionEncoder, load_encoder
from model.pretrained.language import LanguageModel
from model.pretrained.language_loading import load_language_model
from model.qformer import QFormerConfig
from model.stage1 import Stage1
from model.stage2 import Stage2
from model.tokenizer import CaptionTokenizer
from pipeline.dataset import Dataset
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


def save_tensors(tensors: dict[str, Tensor]) -> bytes:
    """Tensors as a safetensors file."""
    return save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})


def load_stage1(checkpoint: Checkpoint, device: str = "cpu") -> Stage1:
    """The model of a stage-1 checkpoint, in eval mode.

    Raises:
        ConfigError: the checkpoint is of another stage.
        DatasetError: its files are damaged.
    """
    if checkpoint.stage != 1:
        raise ConfigError(f"{checkpoint.folder}: is of stage {checkpoint.stage}, not 1")
    tokenizer = CaptionTokenizer.from_json(checkpoint.read("tokenizer").decode())
    stage1 = Stage1(checkpoint.qformer, tokenizer)
    load_weights(stage1, checkpoint)
    return stage1.eval().to(device)


def load_stage2(checkpoint: Checkpoint, device: str = "cpu") -> tuple[Stage2, LanguageModel]:
    """The model of a stage-2 checkpoint with its language model, in eval mode.

    Raises:
        ConfigError: the checkpoint is of another stage, or its language model cannot be had, has
            other weights, or another width.
        DatasetError: its files are damaged.
    """
    if checkpoint.stage != 2:
        raise ConfigError(f"{checkpoint.folder}: is of stage {checkpoint.stage}, not 2")
    needed = checkpoint.lineage.frozen["language_model"]
    language = load_language_model(needed["name"])
    found = {"width": language.width, "weights_digest": weights_digest(language.model)}
    for key, value in found.items():
        if needed[key] != value:
            raise ConfigError(
                f"{checkpoint.folder}: was trained for {needed['name']} with {key} "
                f"{str(needed[key])[:16]}; the one here has {str(value)[:16]}"
            )
    stage2 = Stage2(checkpoint.qformer, language.width)
    load_weights(stage2, checkpoint)
    if end := checkpoint.config["language_model"].get("end_token"):
        # LAVIS ends OPT's captions with a line feed; as a special token it is none of the text.
        language.tokenizer.add_special_tokens({"eos_token": end})
    return stage2.eval().to(device), language.to(device)


def load_weights(module: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's weights into a module of the same shape.

    Raises:
        DatasetError: names or shapes do not fit.
    """
    try:
        module.load_state_dict(checkpoint.tensors())
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise DatasetError(f"{checkpoint.folder}: weights: {' '.join(lines[:2])}") from error


def load_encoder_of(checkpoint: Checkpoint, weights: str | None = None) -> VisionEncoder:
    """The frozen encoder whose features a checkpoint was trained on.

    Args:
        checkpoint: of any stage.
        weights: where its weights are, if they were a file then, or its folder has moved.

    Raises:
        ConfigError: it cannot be loaded, or its weights are others.
    """
    spec = checkpoint.encoder
    if weights is None and spec.weights == "file":
        raise ConfigError(f"weights: {spec.name} was loaded from a file; name it with --weights")
    squash = spec.transform["crop_mode"] == "squash"
    config = EncoderConfig(
        encoder=spec.name,
        weights=weights or spec.weights,
        layer=spec.layer,
        crop="squash" if squash else "own",
    )
    if weights is not None and spec.name.startswith("hf:"):
        config = replace(config, encoder=f"hf:{weights}", weights="pretrained")
    encoder = load_encoder(config)
    if encoder.spec.weights_digest != spec.weights_digest:
        raise ConfigError(
            f"{checkpoint.folder}: was trained on features of {spec.name} with weights "
            f"{spec.weights_digest[:16]}, here are {encoder.spec.weights_digest[:16]}"
        )
    return encoder


def check_features(checkpoint: Checkpoint, features: Dataset) -> None:
    """Check that features come from the encoder that a checkpoint was trained on.

    Raises:
        ConfigError: they do not; both are named with the first difference.
    """
    needed, found = (
        checkpoint.lineage.frozen["encoder"],
        features.manifest.lineage.frozen["encoder"],
    )
    for key in needed:
        if key == "name" and all(its["name"].startswith("hf:") for its in (needed, found)):
            continue  # where a folder is says nothing; the digest says what it holds
        if needed[key] != found.get(key):
            raise ConfigError(
                f"{features.folder}: has features of another encoder than {checkpoint.folder} was "
                f"trained on: {key} {str(found.get(key))[:40]} there, not {str(needed[key])[:40]}"
            )


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
