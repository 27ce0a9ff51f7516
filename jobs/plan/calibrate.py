"""Measures this machine: seconds each, on pictures and models made for it."""

import io
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from jobs.malloc import keep_memory
from jobs.plan.rates import GB, Calibration, Rates
from model.costs import EncoderCost, empty_encoder, stage1_batch, stage1_cost, tokens_flops
from model.objectives import ObjectivesConfig
from model.pretrained.encoders import EncoderConfig, crop_of, load_encoder, transform_of_timm
from model.pretrained.image_tokens import image_tokens, is_vit
from model.pretrained.image_transforms import SQUASH
from model.pretrained.vision_tower import VisionTower
from model.qformer import QFormerConfig
from model.stage1 import Stage1
from pipeline.hashes import coarse_colours, perceptual_hash
from pipeline.pictures import PictureConfig, decode_stored, pixel_digest, store

_BLOCKS = 3
"""Of a ViT, all blocks of which are alike, that are measured."""
_AT_ONCE = {"cpu": 8, "cuda": 64}
"""Pictures or pairs."""
_FILE_BYTES = 1 << 30
_COPY_BYTES = 1 << 28


def calibrate(encoder: str, cost: EncoderCost, qformer: QFormerConfig, folder: str) -> Calibration:
    """Measure the rates of this machine, of all its cores or of its first GPU.

    Args:
        encoder: as `EncoderConfig.encoder`; random weights do.
        cost: of that encoder.
        qformer: whose step is measured.
        folder: on the disk whose speed counts; a file of 1 GB is written there and removed.
    """
    keep_memory()  # as training does
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cores = torch.get_num_threads()
    cpu = product_flops_per_s(torch.device("cpu"), torch.float32)
    peak = cpu if device.type == "cpu" else product_flops_per_s(device, torch.bfloat16)
    _, encoder_flops = encoder_rate(encoder, device)
    step_flops = step_rate(qformer, cost.num_tokens, device)
    files = [web_picture(number) for number in range(8)]
    stored = [store(file, PictureConfig()).jpeg for file in files]
    write, read = disk_rates(folder)
    return Calibration(
        rates=Rates(
            core_gflops=cpu / cores / 1e9,
            gpu_tflops=None if device.type == "cpu" else peak / 1e12,
            encoder_share=min(1.0, encoder_flops / peak),
            train_share=min(1.0, step_flops / peak),
            ingest_per_s=per_second(lambda at: store(files[at % 8], PictureConfig())),
            curate_per_s=per_second(lambda at: _hash(stored[at % 8])),
            decode_per_s=per_second(cropped(encoder, stored)),
            picture_bytes=statistics.mean(map(len, stored)),
            read_gb_per_s=read / GB,
            write_gb_per_s=write / GB,
            memory_gb_per_s=copy_rate() / GB,
            ram_gb=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GB / 2,
        ),
        device=device.type,
        encoder=encoder,
        measured={
            "processor": platform.processor() or platform.machine(),
            "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
            "threads": cores,
            "torch": torch.__version__,
            "encoder_pictures_per_s": encoder_flops / cost.flops,
            "encoder_tflops": encoder_flops / 1e12,
            "train_tflops": step_flops / 1e12,
        },
    )


def product_flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """Of large square matrix products, the median of five."""
    size = 2048 if device.type == "cpu" else 8192
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = [_seconds(lambda: left @ right, device) for _ in range(6)][1:]
    return 2 * size**3 / statistics.median(seconds)


def encoder_rate(name: str, device: torch.device) -> tuple[float, float]:
    """Pictures and operations a second; of a ViT through its first blocks alone."""
    backbone, size = empty_encoder(name)
    if is_vit(backbone):
        backbone.blocks = backbone.blocks[:_BLOCKS]
        flops, _ = tokens_flops(name, backbone, size, -1)
        backbone = backbone.to_empty(device=device)
        for value in [*backbone.parameters(), *backbone.buffers()]:
            value.data.zero_()  # products take as long whatever they multiply
        backbone.requires_grad_(False)
    else:
        flops, _ = tokens_flops(name, backbone, size, -1)
        weights = "random" if name.startswith("timm:") else "pretrained"
        backbone = load_encoder(EncoderConfig(encoder=name, weights=weights)).backbone.to(device)
    pictures = torch.randn(_AT_ONCE[device.type], *size, device=device)
    half = torch.autocast("cuda", torch.float16, enabled=device.type == "cuda")

    def run() -> None:
        with half, torch.inference_mode():
            image_tokens(backbone, pictures, -1)

    seconds = statistics.median([_seconds(run, device) for _ in range(4)][1:])
    per_s = len(pictures) / seconds
    return per_s, per_s * flops


def step_rate(config: QFormerConfig, num_tokens: int, device: torch.device) -> float:
    """Operations a second of a step of stage 1, forward and backward."""
    stage1 = Stage1(config, tokenizer=None).to(device)  # type: ignore[arg-type]
    num, width = _AT_ONCE[device.type], min(14, config.max_text_tokens)
    batch = stage1_batch(config, num, num_tokens, width).to(device)
    uniform = torch.rand(2, num, dtype=torch.float64)

    def run() -> None:
        stage1.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
            loss = stage1(batch, ObjectivesConfig(), 1.0, uniform)["loss"]
        loss.backward()

    seconds = min([_seconds(run, device) for _ in range(3)][1:])
    return num * stage1_cost(config, num_tokens, width).flops / seconds


def cropped(encoder: str, stored: list[bytes]) -> Callable[[int], np.ndarray]:
    """Decodes a stored picture and crops it, as the threads of `viaduct features` do.

    Normalising is left to the encoder's device, where it takes next to nothing.
    """
    backbone, size = empty_encoder(encoder)
    transform = transform_of_timm(backbone) | {"input_size": size}
    if isinstance(backbone, VisionTower):  # whose own transform lies beside its weights
        transform |= SQUASH
    crop = crop_of(transform)
    return lambda at: crop(decode_stored(stored[at % len(stored)]))


def web_picture(number: int) -> bytes:
    """A JPEG of 800 x 600 pixels, about as rough as a photo."""
    draws = np.random.default_rng(number)
    coarse = Image.fromarray(draws.integers(0, 256, (15, 20, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((800, 600), Image.Resampling.BICUBIC), np.int16)
    noisy = np.clip(smooth + draws.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=85)
    return file.getvalue()


def per_second(run: Callable[[int], Any], seconds: float = 1.0) -> float:
    """Calls a second, of one core."""
    run(0)
    begun, done = time.monotonic(), 0
    while time.monotonic() - begun < seconds:
        run(done)
        done += 1
    return done / (time.monotonic() - begun)


def disk_rates(folder: str, size: int = _FILE_BYTES) -> tuple[float, float]:
    """Bytes a second of writing a file to the disk, and of reading it from there."""
    block = np.random.default_rng(0).bytes(1 << 24)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".viaduct-", buffering=0) as file:
        begun = time.monotonic()
        for _ in range(size // len(block)):
            file.write(block)
        os.fsync(file.fileno())
        written = time.monotonic() - begun
        if hasattr(os, "posix_fadvise"):  # or it would be read from memory
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        begun = time.monotonic()
        while file.read(len(block)):
            pass
        return size / written, size / (time.monotonic() - begun)


def copy_rate(size: int = _COPY_BYTES) -> float:
    """Bytes a second of copying pictures' tokens, drawn at random, into a batch; one core."""
    rows = np.zeros((size >> 19, 1 << 19), np.uint8)
    rows += 1  # pages are there
    out = np.empty_like(rows)
    drawn = np.random.default_rng(0).permutation(len(rows))
    np.take(rows, drawn, axis=0, out=out)
    begun = time.monotonic()
    np.take(rows, drawn, axis=0, out=out)
    return size / (time.monotonic() - begun)


def _hash(jpeg: bytes) -> None:
    picture = decode_stored(jpeg)
    pixel_digest(picture), perceptual_hash(picture), coarse_colours(picture)


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    begun = time.monotonic()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.monotonic() - begun
