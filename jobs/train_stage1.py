"""`viaduct train-stage1`: the Q-Former from cached features, by ITC, ITM and ITG."""

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from indexes.recall import ranks, recall
from jobs.cluster import ClusterConfig, session
from jobs.training import (
    LoopConfig,
    MicroBatches,
    RanksConfig,
    Training,
    TrainingData,
    held_out,
    prepare,
    train,
)
from model.checkpoint import Checkpoint
from model.optimizer import OptimizerConfig
from model.stage1 import ObjectivesConfig, Stage1Batch
from model.start import StartConfig, start_digest, start_stage1, start_tokenizer
from model.tokenizer import CaptionTokenizer
from pipeline.lineage import Lineage
from pipeline.loader import Batch, Pairs
from pipeline.order import OrderConfig, held_out_batches
from pipeline.shard_cache import CacheConfig
from pipeline.storage import Folder


@dataclass(frozen=True, kw_only=True)
class TrainStage1:
    """Train the Q-Former on cached image tokens and captions; no picture is opened.

    The defaults are those of BLIP-2's paper. A run that was stopped goes on from its last
    checkpoint and gives the losses of one that was not.
    """

    features: tuple[str, ...]
    """Dataset of kind `features`, or folder of its views; several are mixed."""

    captions: tuple[str, ...]
    """Dataset beside it that has captions and split, `pairs` or `captions`; one for each of the
    features."""

    out: str
    """Folder or URI of the training: checkpoints, metrics.jsonl, TensorBoard."""

    mix: tuple[float, ...] = ()
    """Weights of several datasets: the shares of each in every batch. By default they have as much
    as they have pairs. Validation is on the first one."""

    order: OrderConfig = field(default_factory=OrderConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    start: StartConfig = field(default_factory=StartConfig)
    objectives: ObjectivesConfig = field(default_factory=ObjectivesConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ranks: RanksConfig = field(default_factory=RanksConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def run(self) -> Checkpoint:
        """Train, or go on."""
        where = (self.features, self.captions, self.mix)
        data = TrainingData.open(*where, self.order, self.cache)
        pairs = MicroBatches(data, self.loop).pairs  # raises if too few
        with session(self.cluster, dashboard=True):
            place = prepare(self.ranks, self.loop)
            training = Training(
                folder=Folder.at(self.out),
                stage=1,
                lineage=self._lineage(data),
                loop=self.loop,
                optimizer=self.optimizer,
                make_learner=partial(Stage1Learner, self, data),
                tokenizer=lambda: start_tokenizer(self.start, pairs.all_texts()).to_json(),
            )
            return train(training, self, self.ranks, place)

    def _lineage(self, data: TrainingData) -> Lineage:
        parts = (self.start, self.objectives.resolved(self.loop.steps), self.optimizer)
        config = {name: value for part in parts for name, value in asdict(part).items()}
        frozen: dict[str, Any] = {"encoder": data.encoder}
        if (digest := start_digest(self.start)) is not None:
            frozen["start"] = {"name": self.start.start, "weights_digest": digest}
        config |= data.lasting | self.loop.lasting
        return Lineage("train-stage1", config, data.parents, frozen)


PICTURE_TO_TEXT, TEXT_TO_PICTURE = "recall_at_1_picture_to_text", "recall_at_1_text_to_picture"

_AT_ONCE = 64
"""Held-out pictures that are looked at together."""


class Stage1Learner:
    """Stage 1 within one rank (`jobs.training.Learner`)."""

    def __init__(
        self,
        job: TrainStage1,
        data: TrainingData,
        tokenizer: str,
        device: torch.device,
    ) -> None:
        self._job, self._device = job, device
        self._train = MicroBatches(data, job.loop, pin=device.type == "cuda")
        self._held_out = held_out(*data.evaluation)
        width = data.encoder["width"]
        self._tokenizer = CaptionTokenizer.from_json(tokenizer)
        self.module = start_stage1(job.start, self._tokenizer, width, job.loop.seed)
        self.config: dict[str, Any] = asdict(self.module.config)

    def batch(self, number: int) -> Stage1Batch:
        """This rank's part of a micro-batch."""
        return self._encoded(self._train.of_this_rank(number))

    def named(self, number: int) -> list[dict[str, str]]:
        """uid and caption of the pairs of a micro-batch."""
        return self._train.named(number)

    def losses(self, module: nn.Module, batch: Stage1Batch, number: int) -> dict[str, Tensor]:
        """ITC, ITG and, once it has joined, ITM."""
        objectives, steps = self._job.objectives, self._job.loop.steps
        step = number // self._job.loop.accumulate
        hardness = objectives.itm_hardness(step, steps)
        uniform = torch.from_numpy(self._train.order.negative_draw(number))
        with_itg = objectives.has_itg(step, steps)
        losses = module(batch, objectives, hardness, uniform, with_itg=with_itg)
        told = {"temperature": self.module.temperature.detach()}
        if hardness is not None:
            told["itm_hardness"] = torch.tensor(hardness)
        return losses | told

    def updated(self) -> None:
        """Keep the temperature in its bounds."""
        self.module.bound_temperature()

    def validate(self) -> dict[str, float]:
        """The losses on held-out pairs, ITM with negatives drawn by chance, and recall at 1."""
        if self._held_out is None:
            return {}
        pairs = self._held_out
        num = min(len(pairs), self._job.loop.validation_pictures)
        sums: dict[str, float] = {}
        for part in held_out_batches(num, _AT_ONCE):
            batch = self._encoded(pairs.batch(part.pictures, part.caption_draw)).to(self._device)
            uniform = torch.from_numpy(part.negative_draw)
            for name, value in self.module(batch, self._job.objectives, 0.0, uniform).items():
                sums[name] = sums.get(name, 0.0) + value.item() * len(part.pictures) / num
        return sums | self._recall(pairs, num)

    def merit(self, measured: dict[str, float]) -> float:
        """Recall at 1, of both directions together."""
        return measured[PICTURE_TO_TEXT] + measured[TEXT_TO_PICTURE]

    def written(self) -> list[dict[str, str]]:
        """Nothing: `viaduct caption` asks its caption head."""
        return []

    def _recall(self, pairs: Pairs, num: int) -> dict[str, float]:
        images = [
            self.module.embed_pictures(pairs.tokens(part).to(self._device)).cpu().numpy()
            for part in np.array_split(np.arange(num), -(-num // _AT_ONCE))
        ]
        texts = pairs.texts(np.arange(num))
        owners = np.repeat(np.arange(num), [len(its) for its in texts])
        words = [self.module.embed_texts(its).cpu().numpy() for its in texts]
        found = recall(ranks(np.concatenate(images), np.concatenate(words), owners), at=(1,))
        return {
            PICTURE_TO_TEXT: found.picture_to_text[1].value,
            TEXT_TO_PICTURE: found.text_to_picture[1].value,
        }

    def _encoded(self, batch: Batch) -> Stage1Batch:
        return self.module.batch(batch.tokens, batch.texts, batch.picture, batch.caption)
