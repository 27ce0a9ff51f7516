"""`viaduct plan`: what a run will read, write and take, before it is begun.

rates       how fast machines are: measured, or given
calibrate   measures this one
indexing    what an index takes
steps       what each step computes, reads and writes, and how long that takes
caching     a cache of image tokens against running the encoder at every step
table       prices, and the plan as text and JSON
"""

import json
import logging
import os
from dataclasses import dataclass, field
from typing import Literal

from indexes.kinds import IndexConfig
from jobs.plan.caching import caching
from jobs.plan.calibrate import calibrate
from jobs.plan.rates import Calibration, Rates
from jobs.plan.steps import Evaluated, Machines, Run, steps_of
from jobs.plan.table import Prices, as_json, as_text, costs
from model.costs import embed_cost, encoder_cost, match_cost, stage1_cost, stage2_cost
from model.start import StartConfig, planned_size
from pipeline.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Say what a run will read, write and take, step by step, at any scale.

    Operations are counted from the models, without a weight; how fast machines are is measured on
    this one by --calibrate, which writes it to --rates-file, or given.
    """

    pairs: int | None = None
    """Pictures to train on. Needed, but with --calibrate."""

    rows: int | None = None
    """Rows of the source; by default as many, as if every picture arrived and was kept."""

    gpus: int = 0
    """GPUs; with 0 the CPU cores do their work."""

    cores: int = os.cpu_count() or 1
    """CPU cores of all machines; by default this one's."""

    encoder: str = "timm:eva_giant_patch14_clip_224.laion400m"
    """The vision encoder, as in viaduct features."""

    layer: int = -2
    """Block of a ViT whose output is taken, as in viaduct features."""

    dtype: Literal["fp16", "bf16", "int8"] = "fp16"
    """Type of the cached values."""

    views: int = 1
    """Views of each picture that are cached."""

    language_model: str = "hf:facebook/opt-2.7b"
    """The language model of stage 2, as in viaduct train-stage2."""

    stage1_steps: int = 250_000
    """Steps of stage 1."""

    stage1_batch_size: int = 1680
    """Pictures a step of stage 1."""

    stage2_steps: int = 80_000
    """Steps of stage 2."""

    stage2_batch_size: int = 1920
    """Pictures a step of stage 2."""

    caption_tokens: int = 14
    """Word pieces of a caption on average, [CLS] and [SEP] included; COCO's have 14."""

    captions_per_picture: float = 1.0
    """Captions of a picture on average, for their embeddings."""

    test_pictures: int = 5000
    """Pictures that are evaluated on; COCO's test split has so many."""

    test_captions: int = 25_000
    """Captions that they have."""

    rerank: int = 128
    """Candidates of each of these that ITM puts in order, as in viaduct evaluate."""

    index_kind: Literal["auto", "exact", "hnsw", "ivf", "ivfpq"] = "auto"
    """As --kind in viaduct index."""

    memory_gib: float | None = None
    """As in viaduct index."""

    vectors_per_picture: int | None = None
    """As in viaduct index."""

    shard_pictures: int = IndexConfig.shard_pictures
    """As in viaduct index."""

    calibrate: bool = False
    """Measure this machine, with --encoder, and write --rates-file instead of a plan. Takes about a
    minute; nothing else should run."""

    rates_file: str = "rates.json"
    """File of rates as --calibrate writes it. Options below override what it says."""

    json: bool = False
    """Print one JSON object instead of a table."""

    start: StartConfig = field(default_factory=StartConfig)
    rates: Rates = field(default_factory=Rates)
    prices: Prices = field(default_factory=Prices)

    def __post_init__(self) -> None:
        counts = (
            *("pairs", "rows", "cores", "views", "stage1_steps", "stage1_batch_size"),
            *("stage2_steps", "stage2_batch_size", "test_pictures", "test_captions"),
        )
        for name in counts:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: {value} is not positive")
        self._indexed()  # which checks what it is made of
        for name in ("gpus", "rerank"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: {getattr(self, name)} is negative")
        if self.caption_tokens < 3:
            raise ConfigError(f"caption_tokens: {self.caption_tokens} is less than 3")
        if self.captions_per_picture < 0:
            raise ConfigError(f"captions_per_picture: {self.captions_per_picture} is negative")
        if self.pairs is None and not self.calibrate:
            raise ConfigError("pairs: how many pictures? Give --pairs")

    def run(self) -> None:
        """Print the plan, or measure.

        Raises:
            ConfigError: rates are unknown, or a model's shape cannot be had.
        """
        if self.calibrate:
            self._calibrate()
            return
        known = Calibration.read(self.rates_file)
        measured = known.rates_for(on_gpus=self.gpus > 0) if known else Rates()
        if known and known.encoder != self.encoder and self.rates.encoder_share is None:
            logger.warning(
                "%s: encoder_share is that of %s, not of %s; --calibrate measures another",
                *(self.rates_file, known.encoder, self.encoder),
            )
        machines = Machines(gpus=self.gpus, cores=self.cores, rates=self.rates.over(measured))
        run = self.counted()
        steps = list(steps_of(run, machines))
        weighed = caching(run, machines, {step.name: step for step in steps})
        usd = costs(self.prices, steps, weighed, self.gpus, self.cores)
        if self.json:
            print(json.dumps(as_json(run, machines.rates, steps, weighed, usd)))
        else:
            print("\n".join(as_text(run, steps, weighed, usd)))

    def counted(self) -> Run:
        """The run with what its models cost.

        Raises:
            ConfigError: a model's shape cannot be had.
        """
        encoder = encoder_cost(self.encoder, self.layer)
        size = planned_size(self.start, encoder.width)
        shape = size, encoder.num_tokens, min(self.caption_tokens, size.max_text_tokens)
        pairs = self.pairs or 0
        return Run(
            pairs=pairs,
            rows=self.rows or pairs,
            captions_per_picture=self.captions_per_picture,
            views=self.views,
            dtype=self.dtype,
            stage1_pictures=self.stage1_steps * self.stage1_batch_size,
            stage2_pictures=self.stage2_steps * self.stage2_batch_size,
            qformer=size,
            encoder=encoder,
            stage1=stage1_cost(*shape),
            stage2=stage2_cost(size, self.language_model, *shape[1:]),
            embed=embed_cost(*shape),
            match=match_cost(*shape),
            evaluated=Evaluated(
                pictures=self.test_pictures, captions=self.test_captions, rerank=self.rerank
            ),
            indexed=self._indexed(),
        )

    def _indexed(self) -> IndexConfig:
        return IndexConfig(
            kind=self.index_kind,
            memory_gib=self.memory_gib,
            vectors_per_picture=self.vectors_per_picture,
            shard_pictures=self.shard_pictures,
        )

    def _calibrate(self) -> None:
        encoder = encoder_cost(self.encoder, self.layer)
        size = planned_size(self.start, encoder.width)
        folder = os.path.dirname(self.rates_file) or "."
        found = calibrate(self.encoder, encoder, size, folder)
        found.write(self.rates_file)
        print(json.dumps(found.rates.__dict__, indent=1))
        print(f"{self.rates_file}: measured on {found.device}")
