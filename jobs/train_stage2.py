"""`viaduct train-stage2`: the projection into a frozen language model, from the same features."""

import math
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jobs.cluster import ClusterConfig, session
from jobs.training import (
    LoopConfig,
    MicroBatches,
    RanksConfig,
    Training,
    TrainingData,
    held_out,
    mine,
    prepare,
    train,
)
from model.checkpoint import Checkpoint
from model.checkpoint_models import check_features
from model.generation.settings import GenerationConfig
from model.generation.stage2 import write_texts
from model.language_text import (
    caption_prompt,
    caption_room,
    check_positions,
    language_batch,
    prompt_ids,
)
from model.optimizer import OptimizerConfig
from model.pretrained.digests import weights_digest
from model.pretrained.language_loading import load_language_model
from model.stage2 import Stage2, Stage2Batch, take_over
from pipeline.errors import ConfigError
from pipeline.lineage import Lineage
from pipeline.loader import Batch
from pipeline.order import OrderConfig, held_out_batches
from pipeline.shard_cache import CacheConfig
from pipeline.storage import Folder


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """The frozen language model and what it reads."""

    language_model: str = "hf:facebook/opt-2.7b"
    """`hf:NAME_OR_FOLDER` of a decoder-only model (OPT, Llama-like) or an encoder-decoder (T5), or
    `offline:smollm2`, which comes with pip."""

    prompt: str = ""
    """Text between picture and caption, not learned; "a photo of" for models trained with it."""

    max_language_tokens: int = 32
    """Prompt, caption and end token at most; longer captions are cut."""

    def __post_init__(self) -> None:
        if self.max_language_tokens < 4:
            raise ConfigError(f"max_language_tokens: {self.max_language_tokens} is less than 4")


@dataclass(frozen=True, kw_only=True)
class TrainStage2:
    """Train the Q-Former's queries and a projection into a frozen language model.

    Starts from a stage-1 checkpoint, whose features it needs. The defaults are those of BLIP-2's
    paper for OPT. A run that was stopped goes on from its last checkpoint.
    """

    checkpoint: str
    """Training folder or checkpoint of stage 1."""

    features: tuple[str, ...]
    """Dataset of kind `features`, of the encoder that stage 1 was trained on, or folder of its
    views; several are mixed."""

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
    language: LanguageConfig = field(default_factory=LanguageConfig)
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=80_000, batch_size=1920, validation_pictures=256)
    )
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(final_learning_rate=5e-5)
    )
    ranks: RanksConfig = field(default_factory=RanksConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def run(self) -> Checkpoint:
        """Train, or go on."""
        stage1 = Checkpoint.open(self.checkpoint, 1)
        where = (self.features, self.captions, self.mix)
        data = TrainingData.open(*where, self.order, self.cache)
        check_features(stage1, data.evaluation[0])
        MicroBatches(data, self.loop).log()  # raises if there are too few
        folder = Folder.at(self.out)
        with session(self.cluster, dashboard=True):
            place = prepare(self.ranks, self.loop)
            frozen = {
                "encoder": data.encoder,
                "stage1": {"digest": stage1.digest},
                "language_model": self._language_model(stage1),
            }
            config = asdict(self.language) | asdict(self.optimizer) | data.lasting
            config |= self.loop.lasting
            training = Training(
                folder=folder,
                stage=2,
                lineage=Lineage("train-stage2", config, data.parents, frozen),
                loop=self.loop,
                optimizer=self.optimizer,
                make_learner=partial(Stage2Learner, self, stage1, data),
                tokenizer=lambda: stage1.read("tokenizer").decode(),
            )
            return train(training, self, self.ranks, place)

    def _language_model(self, stage1: Checkpoint) -> dict[str, Any]:
        """What the lineage says of the language model, which is let go before the ranks load it.

        Raises:
            ConfigError: it cannot be had, or has no room for the captions.
        """
        language = load_language_model(self.language.language_model)
        longest = self.language.max_language_tokens
        caption_room(language, self.language.prompt, longest)
        check_positions(language, stage1.config["num_queries"], longest, "max_language_tokens")
        return {
            "name": self.language.language_model,
            "weights_digest": weights_digest(language.model),
            "width": language.width,
        }


_AT_ONCE = 16
"""Held-out pictures that are looked at together."""

_NUM_WRITTEN = 4
"""Held-out pictures that are captioned at each validation."""


class Stage2Learner:
    """Stage 2 within one rank (`jobs.training.Learner`)."""

    def __init__(
        self,
        job: TrainStage2,
        stage1: Checkpoint,
        data: TrainingData,
        tokenizer: str,
        device: torch.device,
    ) -> None:
        self._job, self._device = job, device
        self._train = MicroBatches(data, job.loop, pin=device.type == "cuda")
        self._held_out = held_out(*data.evaluation)
        self._language = load_language_model(job.language.language_model).to(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(job.loop.seed)
            self.module = Stage2(stage1.qformer, self._language.width)
        take_over(self.module, stage1.tensors())
        self.config: dict[str, Any] = stage1.config | {
            "language_model": {
                "name": job.language.language_model,
                "width": self._language.width,
                "prompt": job.language.prompt,
            }
        }

    def batch(self, number: int) -> Stage2Batch:
        """This rank's part of a micro-batch."""
        split_draw = mine(self._train.order.split_draw(number))
        return self._encoded(self._train.of_this_rank(number), split_draw)

    def named(self, number: int) -> list[dict[str, str]]:
        """uid and caption of the pairs of a micro-batch."""
        return self._train.named(number)

    def losses(self, module: nn.Module, batch: Stage2Batch, number: int) -> dict[str, Tensor]:
        """The language model's loss."""
        return module(batch, self._language)

    def updated(self) -> None:
        """Nothing has bounds here."""

    def validate(self) -> dict[str, float]:
        """Loss and perplexity on held-out captions."""
        if self._held_out is None:
            return {}
        num = min(len(self._held_out), self._job.loop.validation_pictures)
        loss = 0.0
        for part in held_out_batches(num, _AT_ONCE):
            pairs = self._held_out.batch(part.pictures, part.caption_draw)
            batch = self._encoded(pairs, part.split_draw)
            part_loss = self.module(batch.to(self._device), self._language)["loss"]
            loss += part_loss.item() * len(part.pictures) / num
        return {"loss": loss, "perplexity": math.exp(loss)}

    def merit(self, measured: dict[str, float]) -> float:
        """The lower the loss, the better."""
        return -measured["loss"]

    def written(self) -> list[dict[str, str]]:
        """Captions of a few held-out pictures beside their own."""
        if self._held_out is None:
            return []
        pictures = np.arange(min(len(self._held_out), _NUM_WRITTEN))
        named = self._held_out.named(pictures, np.zeros(len(pictures)))
        tokens = self._held_out.tokens(pictures.tolist()).to(self._device)
        language, config = self._language, self._job.language
        prompt = caption_prompt(language, config.prompt)
        room = max(2, config.max_language_tokens - len(prompt_ids(language, prompt)))
        greedy = GenerationConfig(method="greedy", min_tokens=1, max_tokens=room)
        texts = write_texts(self.module, language, tokens, prompt, greedy)
        return [its | {"written": text} for its, (text,) in zip(named, texts, strict=True)]

    def _encoded(self, batch: Batch, split_draw: np.ndarray) -> Stage2Batch:
        config = self._job.language
        ids, present, targets = language_batch(
            self._language,
            batch.texts,
            prompt=config.prompt,
            max_tokens=config.max_language_tokens,
            split_draw=split_draw.tolist(),
        )
        return Stage2Batch(batch.tokens, ids, present, targets)
