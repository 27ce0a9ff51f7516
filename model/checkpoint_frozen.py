"""The frozen models that a checkpoint was trained with, checked to be the same ones."""

from dataclasses import replace

from model.checkpoint import Checkpoint
from model.checkpoint_models import load_weights
from model.pretrained.digests import weights_digest
from model.pretrained.encoders import EncoderConfig, VisionEncoder, load_encoder
from model.pretrained.language import LanguageModel
from model.pretrained.language_loading import load_language_model
from model.stage2 import Stage2
from pipeline.errors import ConfigError


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


def encoder_of(checkpoint: Checkpoint, weights: str | None = None) -> EncoderConfig:
    """How to load the frozen encoder whose features a checkpoint was trained on.

    Args:
        checkpoint: of any stage.
        weights: where its weights are, if they were a file then, or its folder has moved.

    Raises:
        ConfigError: they were a file, which is not named.
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
    return config


def load_encoder_of(checkpoint: Checkpoint, weights: str | None = None) -> VisionEncoder:
    """The frozen encoder whose features a checkpoint was trained on; arguments as `encoder_of`.

    Raises:
        ConfigError: it cannot be loaded, or its weights are others.
    """
    spec = checkpoint.encoder
    encoder = load_encoder(encoder_of(checkpoint, weights))
    if encoder.spec.weights_digest != spec.weights_digest:
        raise ConfigError(
            f"{checkpoint.folder}: was trained on features of {spec.name} with weights "
            f"{spec.weights_digest[:16]}, here are {encoder.spec.weights_digest[:16]}"
        )
    return encoder
