"""`viaduct caption`: captions of pictures, by the caption head of stage 1 or the language model."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from jobs.progress import Progress
from model.checkpoint import Checkpoint, load_encoder_of, load_stage1, load_stage2
from model.generation import GenerationConfig, write_captions
from pipeline.errors import ConfigError
from pipeline.pictures import PictureConfig, read_picture

Captioner = Callable[[torch.Tensor], list[str]]
"""Image tokens [B, P, C] to a caption each."""


@dataclass(frozen=True, kw_only=True)
class Caption:
    """Write captions of pictures with a checkpoint of either stage.

    Stage 1 writes with its own caption head, stage 2 with its language model. The vision encoder is
    the one that the checkpoint was trained on.
    """

    pictures: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PICTURE")]
    """Picture files."""

    checkpoint: str
    """Training folder or checkpoint, of stage 1 or 2."""

    top_p: float | None = None
    """Draw from the smallest set of tokens that holds this share of the probability (nucleus
    sampling; 0.9 is usual); by default the most probable token is taken each time. Stage 1 only."""

    seed: int = 0
    """Of the draws."""

    max_tokens: int = 30
    """Longest caption, in tokens."""

    batch_size: int = 16
    """Pictures at once."""

    weights: str | None = None
    """Weights of the vision encoder, where they came from a file."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where to compute; `auto` takes a GPU where there is one."""

    json: bool = False
    """Print one JSON object instead of a line a picture."""

    out: str | None = None
    """File to write the same JSON object to."""

    def __post_init__(self) -> None:
        if not self.pictures:
            raise ConfigError("pictures: name at least one file")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p: {self.top_p} is not in (0, 1]")
        for name in ("max_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not positive")

    def run(self) -> None:
        """Print the captions, and write them where asked to.

        Raises:
            ConfigError: a picture cannot be read, or the checkpoint does not fit what is here.
        """
        checkpoint = Checkpoint.open(self.checkpoint)
        opened = [read_picture(file, PictureConfig()) for file in self.pictures]
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        encoder = load_encoder_of(checkpoint, self.weights).to(device)
        transform = encoder.transform()
        captioner = self._captioner(checkpoint, device)
        progress = Progress("caption", len(opened), 0, "pictures")
        captions: list[str] = []
        for start in range(0, len(opened), self.batch_size):
            some = opened[start : start + self.batch_size]
            captions += captioner(encoder(torch.stack([transform(p) for p in some]).to(device)))
            progress.advance(len(some))
        progress.close()
        self._tell(checkpoint, captions)

    def _captioner(self, checkpoint: Checkpoint, device: str) -> Captioner:
        if checkpoint.stage == 1:
            stage1 = load_stage1(checkpoint, device)
            config = GenerationConfig(
                method="greedy" if self.top_p is None else "nucleus",
                top_p=self.top_p or 1.0,
                min_tokens=0,
                max_tokens=self.max_tokens,
            )
            generator = torch.Generator().manual_seed(self.seed)
            return lambda tokens: [
                captions[0].text for captions in write_captions(stage1, tokens, config, generator)
            ]
        if self.top_p is not None:
            raise ConfigError("top_p: is for stage 1; stage 2 takes the most probable token")
        stage2, language = load_stage2(checkpoint, device)
        prompt = checkpoint.config["language_model"]["prompt"]
        return lambda tokens: stage2.caption(
            tokens, language, prompt=prompt, max_new_tokens=self.max_tokens
        )

    def _tell(self, checkpoint: Checkpoint, captions: list[str]) -> None:
        both = list(zip(self.pictures, captions, strict=True))
        result: dict[str, Any] = {
            "checkpoint": checkpoint.digest,
            "stage": checkpoint.stage,
            "captions": [{"picture": file, "caption": text} for file, text in both],
        }
        if self.out is not None:
            try:
                Path(self.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            except OSError as error:
                raise ConfigError(f"out: {self.out}: {error.strerror}") from error
        if self.json:
            print(json.dumps(result))
            return
        for file, text in both:
            print(f"{file}\t{text}")
