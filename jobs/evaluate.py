"""`viaduct evaluate`: recall and ITM accuracy on held-out pairs, beside chance and a control."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import torch
import tyro

from indexes.intervals import Estimate, bootstrap
from indexes.recall import Recall, chance, ranks, recall
from indexes.sources import checkpoint_of
from jobs.device import Device, torch_device
from jobs.progress import Progress
from jobs.results import publish_result
from model.checkpoint import Checkpoint
from model.checkpoint_models import check_features, load_stage1
from model.itc import same_pairs
from model.itm import draw_negatives
from model.pretrained.sentences import FrozenText
from model.ridge import Ridge, caption_means, fit_ridges, pooled
from model.stage1 import Stage1
from pipeline.captions import kept_texts, open_captions
from pipeline.dataset import Dataset, check_side_by_side
from pipeline.embeddings import Embeddings, read_embeddings, split_rows
from pipeline.errors import ConfigError
from pipeline.loader import Pairs, as_tensor
from pipeline.order import held_out_batches
from pipeline.token_reader import ShardTokens, has_tokens
from pipeline.views import open_evaluation_view

logger = logging.getLogger(__name__)

NO_CONTROL = "none"
_PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True, kw_only=True)
class ControlConfig:
    """A ridge regression from pooled image tokens to a frozen text model's embeddings."""

    control: str = "offline:minilm"
    """The frozen text model (`hf:NAME_OR_FOLDER`, or `offline:minilm`, which comes with pip), or
    `none`."""

    control_pictures: int = 100_000
    """Pictures of the training split that it is fitted on, at most."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure retrieval on a split that was not trained on.

    Recall at 1, 5 and 10 in both directions by ITC alone: any of a picture's captions is right,
    ties count against us, intervals are 95% by bootstrap over pictures. Beside it chance, a ridge
    regression on the same features, and ITM's accuracy on pairs and two random non-pairs each.
    """

    embeddings: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="EMBEDDINGS")]
    """Folder with `image_embeddings` and `text_embeddings`."""

    checkpoint: str
    """Training folder or checkpoint of stage 1 that made the embeddings."""

    features: str
    """Dataset of kind `features`."""

    captions: str
    """Dataset beside it that has captions and split: `pairs` or `captions`."""

    split: Literal["train", "validation", "test"] = "test"
    """Split to measure on."""

    out: str | None = None
    """File to write the result to, as JSON."""

    json: bool = False
    """Print one JSON object instead of a table."""

    device: Device = "auto"
    """Where ITM runs; `auto` takes a GPU where there is one."""

    control: ControlConfig = field(default_factory=ControlConfig)

    def run(self) -> None:
        """Measure, print, and write where asked to.

        Raises:
            ConfigError: the split is empty, or datasets and checkpoint do not belong together.
        """
        checkpoint = Checkpoint.open(self.checkpoint, 1)
        features = open_evaluation_view(self.features)
        captions = open_captions(self.captions)
        images, texts = self._embeddings(checkpoint)
        check_features(checkpoint, features)
        check_side_by_side(captions, features, images, texts)
        found = read_embeddings(images, texts, split_rows(captions, self.split))
        if not len(found.texts):
            raise ConfigError(f"{captions.folder}: its split {self.split!r} has no caption")
        recalls = {
            "q_former": recall(ranks(found.pictures, found.texts, found.owners)),
            "chance": chance(found.owners, len(found.pictures)),
        }
        if self.control.control != NO_CONTROL:
            recalls["ridge"] = self._ridge(features, captions, found)
        result = {
            "split": self.split,
            "num_pictures": len(found.pictures),
            "num_captions": len(found.texts),
            "checkpoint": checkpoint.digest,
            "control": self.control.control,
            "recall": {name: value.to_json() for name, value in recalls.items()},
            "itm": self._itm(checkpoint, Pairs(features, captions, self.split)),
        }
        if self.out is not None:
            publish_result(self.out, result)
        print(json.dumps(result) if self.json else "\n".join(_table(result, recalls)))

    def _embeddings(self, checkpoint: Checkpoint) -> tuple[Dataset, Dataset]:
        found = []
        for kind in ("image_embeddings", "text_embeddings"):
            dataset = Dataset.open(f"{self.embeddings}/{kind}", kind)
            made_by = checkpoint_of(dataset)["digest"]
            if made_by != checkpoint.digest:
                raise ConfigError(
                    f"{dataset.folder}: was made by checkpoint {made_by[:16]}, not by "
                    f"{checkpoint.folder} ({checkpoint.digest[:16]})"
                )
            found.append(dataset)
        return found[0], found[1]

    def _ridge(self, features: Dataset, captions: Dataset, found: Embeddings) -> Recall:
        """The control's recall; its penalty is chosen on the validation split."""
        frozen = FrozenText(self.control.control)
        limits: dict[str, int | None] = {
            "train": self.control.control_pictures,
            "validation": 5_000,
            self.split: None,
        }
        sets = {}
        for split, limit in limits.items():
            logger.info("control: reads split=%s", split)
            sets[split] = _pooled_pictures(features, captions, split, limit)
        owners = {split: _owners(texts) for split, (_, texts) in sets.items()}
        embedded = {
            split: frozen.embed([t for its in texts for t in its])
            for split, (_, texts) in sets.items()
        }
        if not len(embedded["train"]):
            raise ConfigError(f"{captions.folder}: its split 'train' has no caption")
        pictures, texts = sets["train"]
        targets = caption_means(embedded["train"], torch.from_numpy(owners["train"]), len(texts))
        told = torch.tensor([bool(its) for its in texts])
        ridges = fit_ridges(pictures[told], targets[told], _PENALTIES)

        def measure(ridge: Ridge, split: str) -> Recall:
            mapped = ridge(sets[split][0]).numpy()
            return recall(ranks(mapped, embedded[split].numpy(), owners[split]))

        chosen_on = "validation" if len(embedded["validation"]) else "train"
        best = max(ridges, key=lambda ridge: _mean_at_1(measure(ridge, chosen_on)))
        logger.info("control: penalty=%g chosen on %s", best.penalty, chosen_on)
        measured = measure(best, self.split)
        if len(sets[self.split][1]) != len(found.pictures):
            raise ConfigError(f"{features.folder}: other pictures were taken down than embedded")
        return measured

    def _itm(self, checkpoint: Checkpoint, pairs: Pairs) -> dict[str, Any]:
        """Accuracy on each pair, its picture with another's caption, its caption with another's."""
        stage1 = load_stage1(checkpoint, torch_device(self.device))
        right, counted = (
            np.concatenate(part) for part in zip(*_outcomes(stage1, pairs), strict=True)
        )
        if not counted.any():
            raise ConfigError(f"split {self.split!r}: no picture has another one's caption to meet")
        accuracy, *_ = bootstrap(right.sum(axis=1)[:, None], counted.sum(axis=1)[:, None])
        return {
            "accuracy": accuracy.to_json(),
            "prior": 2 / 3,
            "num_pairs": int(counted.sum()),
        }


_AT_ONCE = 64


def _outcomes(stage1: Stage1, pairs: Pairs) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For batches of pictures bool[B, 3]: whether ITM is right, and whether it was asked."""
    progress = Progress("itm", len(pairs), 0, "pictures")
    device = stage1.temperature.device
    for held_out in held_out_batches(len(pairs), _AT_ONCE):
        drawn = pairs.batch(held_out.pictures, held_out.caption_draw)
        batch = stage1.batch(drawn.tokens, drawn.texts, drawn.picture, drawn.caption).to(device)
        same = same_pairs(
            batch.picture, batch.caption, all_picture=batch.picture, all_caption=batch.caption
        )
        by_chance = [
            draw_negatives(same.float(), same, hardness=0.0, uniform=uniform)
            for uniform in torch.from_numpy(held_out.negative_draw).to(device)
        ]
        with torch.inference_mode():
            logits, labels, counted = stage1.match(
                batch, stage1.image_keys(batch.tokens), *by_chance
            )
        right = (logits.argmax(dim=2) == labels) & counted
        progress.advance(len(labels))
        yield right.cpu().numpy(), counted.cpu().numpy()
    progress.close()


def _pooled_pictures(
    features: Dataset, captions: Dataset, split: str, limit: int | None
) -> tuple[torch.Tensor, list[list[str]]]:
    """Pooled tokens [N, C] and kept captions of a split's pictures, in the order of rows."""
    width = features.manifest.lineage.frozen["encoder"]["width"]
    parts = [torch.zeros(0, width)]
    texts: list[list[str]] = []
    for number in captions.records:
        shard, beside = captions.shard(number), features.shard(number)
        live = np.asarray(shard.live) & has_tokens(beside)
        here = live & (shard.table.column("split").to_numpy() == split)
        rows = np.flatnonzero(here)[: None if limit is None else limit - len(texts)].tolist()
        tokens = ShardTokens(beside, features.manifest.rows_per_batch)
        starts = range(0, len(rows), _AT_ONCE)
        parts += [pooled(as_tensor(tokens.read(rows[at : at + _AT_ONCE]))) for at in starts]
        kept = kept_texts(shard.table.column("captions").take(pa.array(rows, pa.int64())))
        texts += [[text for _, text in its] for its in kept]
    return torch.cat(parts), texts


def _owners(texts: list[list[str]]) -> np.ndarray:
    return np.repeat(np.arange(len(texts)), [len(its) for its in texts])


def _mean_at_1(found: Recall) -> float:
    return found.picture_to_text[1].value + found.text_to_picture[1].value


def _table(result: dict[str, Any], recalls: dict[str, Recall]) -> Iterator[str]:
    """The result as lines for people: percent, with 95% intervals."""
    yield (
        f"{result['split']}: {result['num_pictures']:,} pictures, "
        f"{result['num_captions']:,} captions; recall in %, 95% intervals"
    )
    heads = ("picture to text: R@1", "R@5", "R@10", "text to picture: R@1", "R@5", "R@10")
    widths = (22, 20, 20, 24, 20, 20)
    yield " " * 10 + "".join(f"{h:>{width}}" for h, width in zip(heads, widths, strict=True))
    for name, found in recalls.items():
        cells = [*found.picture_to_text.values(), *found.text_to_picture.values()]
        yield f"{name:<10}" + "".join(
            f"{_percent(cell):>{width}}" for cell, width in zip(cells, widths, strict=True)
        )
    itm = Estimate(**result["itm"]["accuracy"])
    yield (
        f"ITM accuracy {_percent(itm)} on {result['itm']['num_pairs']:,} pairs, two in three of "
        "them no pairs (prior 66.7)"
    )


def _percent(share: Estimate) -> str:
    interval = f" ({100 * share.low:.1f}-{100 * share.high:.1f})" if share.high > share.low else ""
    return f"{100 * share.value:.1f}{interval}"
