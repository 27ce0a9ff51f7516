"""CLIP as a judge of captions: the cosine of a picture and a text, as BLIP-2 ranked its captions.

BLIP-2, section 4.1. CLIP learned from other data and by other weights than the captioner.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL.Image import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig

from model.pretrained.digests import folder_digest
from model.pretrained.hub import local_folder
from model.pretrained.load_report import no_report
from pipeline.errors import ConfigError, DatasetError, first_line

_TEXTS_AT_ONCE = 256


@dataclass(frozen=True)
class Clip:
    """Which CLIP, known again by what its folder holds."""

    name: str
    """On the hub, or that of its folder."""
    location: str
    """The name on the hub, or its whole path."""
    digest: str
    """Of weights, configuration, vocabulary and what is done to pictures."""

    @staticmethod
    def of(name: str) -> "Clip":
        """The CLIP in a folder or of a name on the hub, fetched if it is not here yet.

        Raises:
            ConfigError: there is none, it cannot be fetched, or it is another kind of model.
        """
        folder = local_folder(name)
        try:
            kind = AutoConfig.from_pretrained(folder).model_type
        except (OSError, ValueError) as error:
            raise ConfigError(f"clip:{name}: cannot be had ({first_line(error)})") from error
        if kind != "clip":
            raise ConfigError(f"clip:{name}: is a model of type {kind!r}, not a CLIP")
        given = Path(name).expanduser()
        is_folder = given.is_dir()
        return Clip(
            given.resolve().name if is_folder else name,
            str(given.resolve()) if is_folder else name,
            folder_digest(folder, "*.json", "*.txt"),
        )


class ClipJudge:
    """Similarities of pictures and texts by a CLIP.

    Args:
        clip: which one.
        device: to compute on.

    Raises:
        ConfigError: it cannot be loaded, or lacks a weight.
        DatasetError: what is here is not what was found before.
    """

    _model: Any

    def __init__(self, clip: Clip, device: str = "cpu") -> None:
        from transformers import CLIPModel, CLIPProcessor  # seconds that no other judge needs

        if Clip.of(clip.location).digest != clip.digest:
            raise DatasetError(f"clip:{clip.location}: this worker has another one")
        folder = local_folder(clip.location)
        kind: Any = CLIPModel  # as it is typed, it never says what it loaded
        try:
            with no_report():
                self._model, told = kind.from_pretrained(
                    folder, dtype=torch.float32, output_loading_info=True
                )
            processor: Any = CLIPProcessor.from_pretrained(folder)
        except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
            raise ConfigError(
                f"clip:{clip.location}: cannot be loaded ({first_line(error)})"
            ) from error
        for key in sorted(told["missing_keys"]):
            raise ConfigError(f"clip:{clip.location}: {key}: missing")
        self._prepare, self._tokenizer = processor.image_processor, processor.tokenizer
        text = self._model.config.text_config
        if len(self._tokenizer) < text.vocab_size / 2:  # transformers makes an empty one if need be
            raise ConfigError(
                f"clip:{clip.location}: its tokenizer has {len(self._tokenizer)} words, its model "
                f"{text.vocab_size}"
            )
        self._model.eval().requires_grad_(False).to(device)
        self._device = device
        self._max_tokens = text.max_position_embeddings

    @torch.inference_mode()
    def similarities(
        self, pictures: Sequence[Image], texts: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Cosines of each picture with each of its texts.

        Args:
            pictures: RGB; together in memory, as the vision tower takes them.
            texts: of each picture, any number; those that are too long are cut.

        Raises:
            ValueError: there are not as many lists of texts as pictures.
        """
        if len(texts) != len(pictures):
            raise ValueError(f"texts of {len(texts)} pictures for {len(pictures)} pictures")
        places = {text: n for n, text in enumerate(dict.fromkeys(t for its in texts for t in its))}
        if not places:
            return [[] for _ in texts]
        words = self._embed_texts(list(places))
        image = self._embed_pictures(pictures)
        return [
            (words[[places[text] for text in its]] @ its_image).tolist()
            for its, its_image in zip(texts, image, strict=True)
        ]

    def _embed_pictures(self, pictures: Sequence[Image]) -> Float[Tensor, "B E"]:
        """L2-normalised, on the CPU."""
        pixels = self._prepare(images=list(pictures), return_tensors="pt").pixel_values
        return _normalised(self._model.get_image_features(pixel_values=pixels.to(self._device)))

    def _embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "M E"]:
        """L2-normalised, on the CPU."""
        parts = []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            tokens = self._tokenizer(
                list(texts[start : start + _TEXTS_AT_ONCE]),
                padding=True,
                truncation=True,
                max_length=self._max_tokens,
                return_tensors="pt",
            ).to(self._device)
            parts.append(
                _normalised(
                    self._model.get_text_features(
                        input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
                    )
                )
            )
        return torch.cat(parts)


def _normalised(found: Any) -> Float[Tensor, "N E"]:
    """Of what a tower of transformers gives."""
    projected: Tensor = found.pooler_output.float().cpu()
    return torch.nn.functional.normalize(projected, dim=-1)
