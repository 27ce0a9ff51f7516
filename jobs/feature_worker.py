"""The worker of `viaduct features`: decoding, encoder and writing overlap, across shards too."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from jobs.shards import Task
from model.pretrained.augmentation import ViewsConfig, random_view
from model.pretrained.encoder_spec import EncoderSpec
from model.pretrained.encoders import EncoderConfig, VisionEncoder, load_encoder
from pipeline.accounting import Account
from pipeline.dataset import Dataset, Shard, decode_row
from pipeline.errors import ConfigError, DatasetError
from pipeline.features import batches, token_columns
from pipeline.schemas import ROWS_PER_BATCH, features_schema
from pipeline.shard import ShardRecord, ShardWriter, new_shard
from pipeline.storage import Folder
from pipeline.token_codes import Channels

SHARDS_AT_ONCE = 2
"""The encoder has one, while the other is decoded, written or committed."""
_SAMPLED_SHARDS = 8


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """How image tokens are computed and stored."""

    dtype: Literal["fp16", "bf16", "int8"] = "fp16"
    """Type of the stored values; fp16 is finer, bf16 holds larger ones, int8 takes half the
    space (docs/features.md)."""

    calibration_pictures: int = 256
    """For int8: pictures whose tokens decide the centre and scale of each channel."""

    batch_size: int = 32
    """Pictures the encoder takes at once. With another size the last bits may differ, so it
    belongs to the lineage."""

    threads: int = 1
    """Threads of the encoder in each worker on a CPU; belongs to the lineage like batch_size."""

    decode_threads: int = 2
    """Threads in each worker that decode and crop pictures ahead of the encoder."""

    def __post_init__(self) -> None:
        for name in ("calibration_pictures", "batch_size", "threads", "decode_threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not positive")


@dataclass(frozen=True)
class FeatureWork:
    """What a worker is to make of pictures."""

    pairs: Dataset
    out: Folder
    encoder: EncoderConfig
    spec: EncoderSpec
    """Of the encoder, as it was found before: a worker that loads another one refuses."""
    cache: CacheConfig
    device: str
    views: ViewsConfig
    view: int
    channels: Channels | None = None
    """For int8."""

    @property
    def schema(self) -> pa.Schema:
        metadata = self.channels.as_metadata if self.channels else None
        return features_schema(self.spec.num_tokens, self.spec.width, self.cache.dtype, metadata)


class FeatureWorker:
    """Loads the encoder once, then encodes shard after shard.

    It may be called with two shards at once, in two threads: the encoder has a thread of its own,
    which takes a whole shard after the other, so that the later one's first batches are decoded
    while it waits, and the earlier one is written and committed while the next is encoded.
    """

    def __init__(self, work: FeatureWork) -> None:
        if work.device != "cpu" and not torch.cuda.is_available():
            raise ConfigError("device: 'cuda', but the worker sees no GPU; set --gpus-per-worker")
        self._work = work
        self._encoding = ThreadPoolExecutor(1)
        self._decoding = ThreadPoolExecutor(work.cache.decode_threads)
        self._encoder = self._encoding.submit(self._load).result()
        self._prepare = self._view(self._encoder)
        self._warm_up()

    def __call__(self, task: Task) -> ShardRecord:
        pairs = self._work.pairs.shard(task.number, verify=True)
        coming = batches(pairs, self._work.cache.batch_size, self._prepare, self._decoding)
        with new_shard(self._work.out, task.number) as shard, ThreadPoolExecutor(1) as writing:
            writer = shard.open(self._work.schema, ROWS_PER_BATCH["features"])

            def write(rows: range, present: list[bool], tokens: torch.Tensor) -> None:
                self._write(writer, pairs, rows, present, tokens)

            def encode() -> Future[None] | None:
                last = None
                for rows, pictures in coming:
                    present = [picture is not None for picture in pictures]
                    tokens = self._encode([p for p in pictures if p is not None])
                    if last is not None:
                        last.result()  # no more than one batch waits to be written
                    last = writing.submit(write, rows, present, tokens)
                return last

            last = self._encoding.submit(encode).result()
            if last is not None:
                last.result()
            return shard.commit(pictures=Account.all_kept(pairs.table.num_rows))

    def channels(self) -> Channels:
        """Centre and scale of each channel of the tokens, on a sample spread over the dataset."""
        size = self._work.cache.batch_size

        def parts() -> Iterator[np.ndarray]:
            pictures = list(self._sample())
            for start in range(0, len(pictures), size):
                some = pictures[start : start + size]
                yield self._encoding.submit(self._encode, some).result().float().cpu().numpy()

        return Channels.of(parts(), self._work.spec.width)

    def _sample(self) -> Iterator[np.ndarray]:
        """Pictures of a few shards, because a shard that is far away comes whole."""
        numbers = sorted(self._work.pairs.records)
        chosen = numbers[:: -(-len(numbers) // _SAMPLED_SHARDS) or 1]
        for at, number in enumerate(chosen):
            shard = self._work.pairs.shard(number)
            live = np.flatnonzero(np.asarray(shard.live))
            total = self._work.cache.calibration_pictures
            wanted = min(len(live), total // len(chosen) + (at < total % len(chosen)))
            for row in live[np.linspace(0, len(live) - 1, wanted).astype(int)].tolist():
                uid = shard.table.column("uid")[row].as_py()
                yield self._prepare(decode_row(shard, row), uid)

    def _load(self) -> VisionEncoder:
        if self._work.device == "cpu":
            torch.set_num_threads(self._work.cache.threads)
        encoder = load_encoder(self._work.encoder)
        if encoder.spec != self._work.spec:
            raise DatasetError(f"encoder: {encoder.spec.name}: this worker has other weights")
        return encoder.to(self._work.device)

    def _warm_up(self) -> None:
        """What is loaded at first use (kernels, and half a second of pyarrow) is loaded now."""
        _, height, width = self._work.spec.transform["input_size"]
        blank = np.zeros((height, width, 3), np.uint8)
        tokens = self._encoding.submit(self._encode, [blank]).result().float().cpu().numpy()
        token_columns(tokens, [True], [bytes(16)], "bf16")

    def _view(self, encoder: VisionEncoder) -> Callable[[Image.Image, bytes], np.ndarray]:
        if self._work.view:
            return random_view(self._work.views, self._work.view, encoder.spec.transform)
        crop = encoder.crop()
        return lambda picture, uid: crop(picture)

    def _encode(self, pictures: list[np.ndarray]) -> torch.Tensor:
        """[N, P, C]; on a GPU in mixed precision, as BLIP-2 runs its frozen encoder."""
        spec, device = self._work.spec, self._work.device
        if not pictures:
            return torch.zeros(0, spec.num_tokens, spec.width)
        # What is to be stored as bf16 may be too large for fp16 on its way too.
        half = torch.bfloat16 if self._work.cache.dtype == "bf16" else torch.float16
        batch = self._encoder.normalise(torch.from_numpy(np.stack(pictures)).to(device))
        with torch.autocast("cuda", half, enabled=device == "cuda"):
            return self._encoder(batch)

    def _write(
        self,
        writer: ShardWriter,
        pairs: Shard,
        rows: range,
        present: list[bool],
        tokens: torch.Tensor,
    ) -> None:
        uids = pairs.table.column("uid").slice(rows.start, len(rows))
        values = tokens.float().cpu().numpy()  # waits for a GPU, which has its next batch by now
        dtype, channels = self._work.cache.dtype, self._work.channels
        columns: dict[str, Any] = token_columns(values, present, uids.to_pylist(), dtype, channels)
        writer.write(pa.table({"uid": uids, **columns}, schema=writer.schema))


def read_channels(folder: Folder) -> Channels | None:
    """What an earlier run of the job found out for its folder; it must go on with the same."""
    told = folder.read_json(_CHANNELS)
    return None if told is None else Channels.from_json(told)


def publish_channels(folder: Folder, channels: Channels) -> None:
    folder.publish(_CHANNELS, json.dumps(channels.to_json()).encode())


_CHANNELS = ".channels.json"
