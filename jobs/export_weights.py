"""`viaduct export`: a checkpoint as weights of LAVIS or of transformers."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
import tyro

from model.checkpoint import Checkpoint
from model.checkpoint_frozen import load_encoder_of, load_stage2
from model.checkpoint_models import load_stage1
from model.exchange import lavis
from model.exchange.hugging_face import LACKING, is_kept_frozen, to_hugging_face
from model.exchange.hugging_face_models import generation_model, retrieval_model
from model.exchange.kept_beside import FILE, Kept
from model.exchange.vit_as_tower import tower_of
from model.pretrained.digests import tensors_digest
from model.pretrained.encoders import VisionEncoder
from pipeline.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a checkpoint so that LAVIS or transformers loads it.

    For transformers: a folder for `Blip2ForImageTextRetrieval` (stage 1) or
    `Blip2ForConditionalGeneration` (stage 2), with vision tower, language model and processor. For
    LAVIS: model.pth, without the frozen models. What the format does not hold is kept beside, in
    viaduct.safetensors, where `viaduct import` finds it again.
    """

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """Training folder or checkpoint, of stage 1 or 2."""

    to: Literal["transformers", "lavis"]
    """Whose names and files."""

    out: str
    """Folder to make; it must be empty, or not there."""

    weights: str | None = None
    """Weights of the vision encoder, where they came from a file, or its folder, where it has
    moved."""

    def run(self) -> None:
        """Write the folder, whole or not at all, and say what it does not hold."""
        checkpoint = Checkpoint.open(self.checkpoint)
        out = Path(self.out).expanduser()
        if "://" in self.out:
            raise ConfigError(f"out: {self.out}: a local folder is needed")
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(f"out: {out}: exists, and is no empty folder")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".tmp-") as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            if self.to == "lavis":
                lines = _write_lavis(checkpoint, made)
            else:
                lines = self._write_hugging_face(checkpoint, made)
            os.replace(made, out)
        print("\n".join([*lines, f"{out}: {self.to}, {checkpoint.summary}"]))

    def _write_hugging_face(self, checkpoint: Checkpoint, folder: Path) -> list[str]:
        encoder = load_encoder_of(checkpoint, self.weights)
        tower, transform = tower_of(encoder), encoder.spec.transform
        lines: list[str] = []
        model: Any
        if checkpoint.stage == 1:
            stage1 = load_stage1(checkpoint)
            model, processor = retrieval_model(stage1, tower, transform)
            lines += [f"{FILE}: {what}, for which there is no place" for what in LACKING.values()]
        else:
            stage2, language = load_stage2(checkpoint)
            rows = language.model.get_input_embeddings().num_embeddings
            model, processor = generation_model(stage2, language, tower, transform)
            if language.model.get_input_embeddings().num_embeddings != rows:
                lines.append("language model: has one token more, for the query outputs; scores 0")
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        _, rest = to_hugging_face(checkpoint.tensors())
        _keep(checkpoint, rest, folder, tensors_digest(folder, is_kept_frozen))
        return lines + _norm_told(checkpoint, encoder, tower.config.layer_norm_eps)


def _write_lavis(checkpoint: Checkpoint, folder: Path) -> list[str]:
    theirs = lavis.to_lavis(
        checkpoint.tensors(),
        max_positions=checkpoint.qformer.max_positions,
        encoder_decoder=checkpoint.stage == 2 and load_stage2(checkpoint)[1].is_encoder_decoder,
    )
    torch.save({"model": theirs}, folder / lavis.FILE)
    _keep(checkpoint, {}, folder, None)
    lines = [f"{FILE}: the configuration and the tokenizer, which LAVIS has elsewhere"]
    return lines + _norm_told(checkpoint, None, lavis.NORM_EPS)


def _keep(
    checkpoint: Checkpoint, tensors: dict[str, Any], folder: Path, frozen_digest: str | None
) -> None:
    Kept(
        checkpoint.stage,
        checkpoint.step,
        checkpoint.config,
        checkpoint.lineage,
        checkpoint.read("tokenizer").decode() if "tokenizer" in checkpoint.files else None,
        frozen_digest,
        tensors,
    ).write(folder)


@torch.inference_mode()
def _norm_told(checkpoint: Checkpoint, encoder: VisionEncoder | None, theirs: float) -> list[str]:
    """That `ln_vision` is computed with another epsilon there, where it is."""
    ours = checkpoint.qformer.vision_norm_eps
    if ours == theirs:
        return []
    line = f"ln_vision: its epsilon is {ours:g} here and {theirs:g} there"
    if encoder is None:
        return [line]
    shape = encoder.spec.transform["input_size"]
    tokens = encoder(torch.rand(1, *shape, generator=torch.Generator().manual_seed(0)))
    here, there = (F.layer_norm(tokens, tokens.shape[-1:], eps=eps) for eps in (ours, theirs))
    share = ((here - there).abs().max() / here.abs().max()).item()
    return [f"{line}; on a picture of noise that changes its output by {share:.1e} of the largest"]
