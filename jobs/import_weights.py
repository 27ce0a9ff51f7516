"""`viaduct import`: weights of LAVIS or of transformers as a checkpoint."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from model.checkpoint import FILE, Checkpoint, qformer_of, save_tensors, write_checkpoint
from model.exchange import lavis
from model.exchange.foreign_weights import ForeignWeights
from model.exchange.hugging_face import (
    CAPTION_HEAD,
    LACKING,
    folder_tokenizer,
    from_hugging_face,
    is_kept_frozen,
    read_config,
    read_hugging_face,
)
from model.exchange.kept_beside import Kept
from model.exchange.lavis_tower import lavis_tower
from model.heads import HeadState, head_states, heads_to_tell
from model.objectives import ITG, LOSSES
from model.pretrained.digests import folder_digest, tensors_digest, weights_digest
from model.pretrained.encoder_spec import EncoderSpec
from model.pretrained.encoders import EncoderConfig, load_encoder
from model.pretrained.hub import local_folder
from model.pretrained.language import LanguageModel
from model.pretrained.language_loading import load_language_model
from model.pretrained.vision_tower import VisionTower, save_tower
from model.tokenizer import CaptionTokenizer
from pipeline.errors import ConfigError
from pipeline.lineage import Lineage, Parent
from pipeline.storage import Folder
from pipeline.views import open_evaluation_view

TOWER = "vision_tower"
"""Folder within a checkpoint, where LAVIS's file has a vision encoder of its own."""


@dataclass(frozen=True)
class Source:
    """What is taken in."""

    format: str
    digest: str
    weights: ForeignWeights
    kept: Kept | None
    """What `viaduct export` laid beside it, as far as it still fits."""
    folder: str | None = None
    """Of transformers: path or name, where tower, tokenizer and language model lie too."""
    tower: tuple[VisionTower, dict[str, Any]] | None = None
    """Vision tower and transform within LAVIS's file."""

    @property
    def frozen(self) -> Mapping[str, Any]:
        """The frozen models that a checkpoint belonged to when it was exported, if these are they:
        the lineage's words; empty otherwise."""
        kept = self.kept
        if kept is None or (self.format != "lavis" and kept.frozen_digest is None):
            return {}
        return kept.lineage.frozen


@dataclass(frozen=True, kw_only=True)
class Import:
    """Make a checkpoint of a BLIP-2 of LAVIS or transformers, of stage 1 or 2.

    Each tensor is used, or named with the reason why it is left out.
    """

    path: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """LAVIS's .pth file; a folder, or a name on the hub, of transformers' BLIP-2; or what `viaduct
    export` wrote."""

    out: str
    """Folder or URI of the checkpoint to make."""

    encoder: str | None = None
    """Vision encoder that it belongs to (`viaduct features --help`); by default its own, or where
    LAVIS's file has none, timm:eva_giant_patch14_clip_224.laion400m."""

    weights: str = "pretrained"
    """Weights of that encoder."""

    layer: int = -2
    """Block of that encoder whose output is taken, counted from its end."""

    crop: Literal["own", "squash"] = "squash"
    """What of a picture that encoder sees; BLIP-2 squashes it whole."""

    features: str | None = None
    """Dataset of features whose encoder it belongs to, instead of --encoder: for machines that
    have the features but not the encoder."""

    tokenizer: str | None = None
    """Of the Q-Former's text, `hf:NAME_OR_FOLDER`; [DEC] is added. By default that of the folder,
    or for LAVIS's stage 1 hf:bert-base-uncased."""

    language_model: str | None = None
    """Of stage 2, `hf:NAME_OR_FOLDER`; LAVIS's files need it, a folder of transformers has one."""

    prompt: str | None = None
    """Text between picture and caption in stage 2; by default none."""

    num_heads: int | None = None
    """Heads of attention, where LAVIS's are not 64 wide; a folder of transformers says it."""

    def run(self) -> Checkpoint:
        """Make the checkpoint, and say what became of all that was found."""
        folder = Folder.at(self.out)
        if folder.size(FILE) is not None:
            raise ConfigError(f"out: {folder}: has a checkpoint; name another folder")
        if self.encoder is not None and self.features is not None:
            raise ConfigError("encoder, features: name one of them")
        source = self._open()
        weights = source.weights
        lines = weights.told + _told(source)
        contents: dict[str, bytes] = {}
        config: dict[str, Any] = asdict(weights.config)
        frozen = dict(source.frozen)
        says: dict[str, Any] = {"format": source.format}
        if weights.stage == 1:
            says |= heads_to_tell(_heads(source))
            tokenizer = self._tokenizer(source)
            contents["weights"] = save_tensors(weights.stage1(tokenizer).state_dict())
            contents["tokenizer"] = tokenizer.to_json().encode()
        else:
            contents["weights"] = save_tensors(weights.stage2().state_dict())
            config["language_model"], frozen["language_model"] = self._language(source)
        frozen["encoder"] = self._encoder(source, folder)
        if frozen["encoder"]["width"] != weights.config.vision_width:
            raise ConfigError(
                f"encoder: {frozen['encoder']['name']} is {frozen['encoder']['width']} wide; "
                f"{self.path} was trained on one {weights.config.vision_width} wide"
            )
        lineage = Lineage("import", says, (Parent(source.format, source.digest),), frozen)
        step = source.kept.step if source.kept else 0
        made = Checkpoint(folder, weights.stage, step, config, lineage, {})
        print("\n".join([*lines, _features_told(EncoderSpec(**frozen["encoder"]))]))
        return write_checkpoint(made, contents)

    def _open(self) -> Source:
        path = Path(self.path.removeprefix("hf:")).expanduser()
        if path.is_dir() and (path / lavis.FILE).exists():
            path = path / lavis.FILE
        if path.is_file():
            return self._open_lavis(path)
        return self._open_hugging_face(self.path.removeprefix("hf:"))

    def _open_lavis(self, file: Path) -> Source:
        theirs = lavis.read_lavis(file)
        digest = Folder.at(str(file.parent)).digest(file.name)
        kept = Kept.read(file.parent) if file.name == lavis.FILE else None
        known = {"num_heads": self.num_heads} if self.num_heads else {}
        weights = _as_kept(lavis.from_lavis(theirs, known), kept)
        tower = None
        if self.encoder is None and self.features is None:  # or another one is named
            tower = lavis_tower(theirs)
            weights.left_out.pop(lavis.VISION, None)
        return Source("lavis", digest, weights, kept, tower=tower)

    def _open_hugging_face(self, name: str) -> Source:
        folder = local_folder(name)
        config = read_config(folder)
        theirs, others = read_hugging_face(folder)
        kept = Kept.read(folder)
        weights = from_hugging_face(theirs, config, kept.tensors if kept else {})
        if kept and kept.frozen_digest != tensors_digest(folder, is_kept_frozen):
            kept = replace(kept, frozen_digest=None)
        for start, why in (
            ("vision_model.", "vision tower"),
            ("language_model.", "language model"),
        ):
            if names := [name for name in others if name.startswith(start)]:
                weights.left_out[f"the frozen {why}, which stays where it is"] = names
        here = Path(name).expanduser()
        place = str(here.resolve()) if here.is_dir() else name  # or a name on the hub
        weights = _as_kept(weights, kept)
        return Source("transformers", folder_digest(folder), weights, kept, folder=place)

    def _tokenizer(self, source: Source) -> CaptionTokenizer:
        if self.tokenizer is not None:
            return CaptionTokenizer.of_model(self.tokenizer)
        if source.kept is not None and source.kept.tokenizer is not None:
            return CaptionTokenizer.from_json(source.kept.tokenizer)
        if source.folder is not None:
            return folder_tokenizer(local_folder(source.folder))
        return CaptionTokenizer.of_model("hf:bert-base-uncased")

    def _language(self, source: Source) -> tuple[dict[str, Any], dict[str, Any]]:
        """What configuration and lineage say of the language model."""
        if self.language_model is None and source.frozen and source.kept:
            chosen = {} if self.prompt is None else {"prompt": self.prompt}
            config = source.kept.config["language_model"] | chosen
            return config, source.frozen["language_model"]
        name = self.language_model or (f"hf:{source.folder}" if source.folder else None)
        if name is None:
            raise ConfigError(
                "language_model: LAVIS's files hold none; name the one that it was trained for, "
                "such as --language-model hf:facebook/opt-2.7b"
            )
        language = load_language_model(name)
        width = source.weights.tensors["projection.weight"].shape[0]
        if language.width != width:
            raise ConfigError(f"language_model: {name} is {language.width} wide, not {width}")
        config = {"name": name, "width": width, "prompt": self.prompt or ""}
        if end := _end_token(source, language):
            config["end_token"] = end
        digest = weights_digest(language.model)
        return config, {"name": name, "weights_digest": digest, "width": width}

    def _encoder(self, source: Source, folder: Folder) -> dict[str, Any]:
        """What the lineage says of the encoder that the checkpoint belongs to."""
        if self.features is not None:
            features = open_evaluation_view(self.features)
            return dict(features.manifest.lineage.frozen["encoder"])
        name = self.encoder
        if name is None and source.frozen:
            return dict(source.frozen["encoder"])
        config = EncoderConfig(
            encoder=name or lavis.ENCODER, weights=self.weights, layer=self.layer, crop=self.crop
        )
        if name is None and source.folder is not None:
            config = EncoderConfig(encoder=f"hf:{source.folder}")
        elif name is None and source.tower is not None:
            config = EncoderConfig(encoder=f"hf:{_saved(*source.tower, folder)}")
        spec: EncoderSpec = load_encoder(config).spec
        return spec.to_json()


def _saved(tower: VisionTower, transform: dict[str, Any], folder: Folder) -> Path:
    if not folder.is_local:
        raise ConfigError(f"out: {folder}: the file has a vision encoder, which needs local disk")
    place = Path(folder.path) / TOWER
    save_tower(tower, transform, place)
    return place


def _as_kept(weights: ForeignWeights, kept: Kept | None) -> ForeignWeights:
    """With the whole configuration that the checkpoint had before it was exported."""
    if kept is None:
        return weights
    if kept.stage != weights.stage:
        raise ConfigError(f"viaduct.safetensors: is of stage {kept.stage}, not {weights.stage}")
    return replace(weights, config=qformer_of(kept.config))


def _heads(source: Source) -> dict[str, HeadState]:
    """Of stage 1: as they were when it was exported, if it was; what is lacking is untrained."""
    states: dict[str, HeadState] = dict.fromkeys(LOSSES, "trained")
    if source.kept is not None:
        states = head_states(source.kept.lineage)
    if CAPTION_HEAD in source.weights.lacking:
        states[ITG] = "untrained"
    return states


def _end_token(source: Source, language: LanguageModel) -> str | None:
    """The token that ends a caption, where it is not the tokenizer's."""
    tokenizer: Any = language.tokenizer
    config: Any = language.model.config
    number = config.eos_token_id
    if source.format == "lavis" and config.model_type == "opt":
        number, *_ = tokenizer("\n", add_special_tokens=False)["input_ids"] or [number]
    if not isinstance(number, int) or number == tokenizer.eos_token_id:
        return None
    return str(tokenizer.convert_ids_to_tokens(number))


def _features_told(spec: EncoderSpec) -> str:
    """How features for the checkpoint are made."""
    options = f"--encoder {spec.name}"
    if spec.weights != "pretrained":
        options += f" --weights {'FILE' if spec.weights == 'file' else spec.weights}"
    if spec.name.startswith("timm:"):
        options += f" --layer {spec.layer}"
        options += " --crop squash" if spec.transform["crop_mode"] == "squash" else ""
    return f"features for it: viaduct features PAIRS --out FEATURES {options}"


def _told(source: Source) -> list[str]:
    """What the format does not hold, and where it comes from instead."""
    if source.kept is not None:
        return ["beside: viaduct.safetensors, with all that the format does not hold"]
    starts = {"temperature": "starts at 0.07", CAPTION_HEAD: "starts from chance"}
    return [f"not there: {LACKING[it]}, which {starts[it]}" for it in source.weights.lacking]
