"""`viaduct train-stage1`: the Q-Former from cached features, by ITC, ITM and ITG."""

from collections.abc import Iterable
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
from model.checkpoint_models import check_features
from model.objectives import ITC, LOSSES, ObjectivesConfig
from model.optimizer import OptimizerConfig
from model.stage1 import Stage1Batch
from model.start import (
    StartConfig,
    size_from_checkpoint,
    start_digest,
    start_from_checkpoint,
    start_stage1,
    start_tokenizer,
)
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
    checkpoint and gives the losses of one that was not. With --init another training begins where
    one has ended, with --losses by some of the objectives alone: --losses itg makes a captioner of
    a checkpoint, --losses itc,itm a judge of captions.
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
        init = None if self.start.init is None else Checkpoint.open(self.start.init, 1)
        where = (self.features, self.captions, self.mix)
        data = TrainingData.open(*where, self.order, self.cache)
        if init is not None:
            check_features(init, data.evaluation[0])
            size_from_checkpoint(self.start, init)  # raises if captions are too long for it
        batches = MicroBatches(data, self.loop)  # raises if too few
        batches.log()
        with session(self.cluster, dashboard=True):
            place = prepare(self.ranks, self.loop)
            training = Training(
                folder=Folder.at(self.out),
                stage=1,
                lineage=self._lineage(data, init),
                loop=self.loop,
                optimizer=self.optimizer,
                make_learner=partial(Stage1Learner, self, data, init=init),
                tokenizer=lambda: self._tokenizer(init, batches.pairs.all_texts()),
            )
            return train(training, self, self.ranks, place)

    def resolved_objectives(self) -> ObjectivesConfig:
        """The objectives, with numbers in place of defaults that depend on the training."""
        trained = self.start.init is not None
        return self.objectives.resolved(self.loop.steps, trained=trained)

    def _tokenizer(self, init: Checkpoint | None, texts: Iterable[str]) -> str:
        if init is not None:
            return init.read("tokenizer").decode()
        return start_tokenizer(self.start, texts).to_json()

    def _lineage(self, data: TrainingData, init: Checkpoint | None = None) -> Lineage:
        objectives = asdict(self.resolved_objectives())
        if objectives["losses"] == ",".join(LOSSES):
            del objectives["losses"]  # told where some are left out
        config = self.start.lasting | objectives | asdict(self.optimizer)
        frozen: dict[str, Any] = {"encoder": data.encoder}
        if init is not None:
            frozen["init"] = {"digest": init.digest}
        elif (digest := start_digest(self.start)) is not None:
            frozen["start"] = {"name": self.start.base, "weights_digest": digest}
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
        init: Checkpoint | None = None,
    ) -> None:
        self._job, self._device = job, device
        self._objectives = job.resolved_objectives()
        self._train = MicroBatches(data, job.loop, pin=device.type == "cuda")
        self._held_out = held_out(*data.evaluation)
        if init is not None:
            self.module = start_from_checkpoint(job.start, init)
        else:
            words, width = CaptionTokenizer.from_json(tokenizer), data.encoder["width"]
            self.module = start_stage1(job.start, words, width, job.loop.seed)
        self.module.freeze_unread(self._objectives.chosen)
        self.config: dict[str, Any] = asdict(self.module.config)

    def batch(self, number: int) -> Stage1Batch:
        """This rank's part of a micro-batch."""
        return self._encoded(self._train.of_this_rank(number))

    def named(self, number: int) -> list[dict[str, str]]:
        """uid and caption of the pairs of a micro-batch."""
        return self._train.named(number)

    def losses(self, module: nn.Module, batch: Stage1Batch, number: int) -> dict[str, Tensor]:
        """Those that are trained by and have joined."""
        objectives, steps = self._objectives, self._job.loop.steps
        step = number // self._job.loop.accumulate
        hardness = objectives.itm_hardness(step, steps)
        uniform = torch.from_numpy(self._train.order.negative_draw(number))
        with_itg = objectives.has_itg(step, steps)
        losses = module(batch, objectives, hardness, uniform, with_itg=with_itg)
        told = {}
        if ITC in objectives.chosen:
            told["temperature"] = self.module.temperature.detach()
        if hardness is not None:
            told["itm_hardness"] = torch.tensor(hardness)
        return losses | told

    def updated(self) -> None:
        """Keep the temperature in its bounds, where it is trained."""
        if ITC in self._objectives.chosen:
            self.module.bound_temperature()

    def validate(self) -> dict[str, float]:
        """The losses on held-out pairs, ITM with negatives drawn by chance, and with ITC recall at
        1."""
        if self._held_out is None:
            return {}
        pairs = self._held_out
        num = min(len(pairs), self._job.loop.validation_pictures)
        sums: dict[str, float] = {}
        for part in held_out_batches(num, _AT_ONCE):
            batch = self._encoded(pairs.batch(part.pictures, part.caption_draw)).to(self._device)
            uniform = torch.from_numpy(part.negative_draw)
            for name, value in self.module(batch, self._objectives, 0.0, uniform).items():
                sums[name] = sums.get(name, 0.0) + value.item() * len(part.pictures) / num
        return sums | (self._recall(pairs, num) if ITC in self._objectives.chosen else {})

    def merit(self, measured: dict[str, float]) -> float:
        """Recall at 1, of both directions together; without ITC, ITM's accuracy; by ITG alone, the
        lower loss."""
        if PICTURE_TO_TEXT in measured:
            return measured[PICTURE_TO_TEXT] + measured[TEXT_TO_PICTURE]
        return measured["itm_accuracy"] if "itm_accuracy" in measured else -measured["itg"]

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
