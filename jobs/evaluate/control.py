"""The control: a ridge regression from pooled image tokens to a frozen text model's embeddings."""

import logging
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from indexes.recall import Recall, ranks, recall
from model.pretrained.sentences import FrozenText
from model.ridge import Ridge, caption_means, fit_ridges, pooled
from pipeline.captions import kept_texts, open_captions
from pipeline.dataset import Dataset, check_side_by_side
from pipeline.errors import ConfigError
from pipeline.loader import as_tensor
from pipeline.token_reader import ShardTokens, has_tokens
from pipeline.views import check_same_encoder, open_evaluation_view

logger = logging.getLogger(__name__)

NO_CONTROL = "none"
_PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_VALIDATION_PICTURES = 5_000
_AT_ONCE = 64
_MEASURED = "measured"


@dataclass(frozen=True, kw_only=True)
class ControlConfig:
    """A ridge regression from pooled image tokens to a frozen text model's embeddings."""

    control: str = "offline:minilm"
    """The frozen text model (`hf:NAME_OR_FOLDER`, or `offline:minilm`, which comes with pip), or
    `none`."""

    control_features: str | None = None
    """Dataset of kind `features` whose training split it is fitted on; by default --features. Where
    nothing is left to train on, as of an evaluation set, there is no control."""

    control_captions: str | None = None
    """Dataset with captions and split beside --control-features."""

    control_pictures: int = 100_000
    """Pictures of the training split that it is fitted on, at most."""

    def __post_init__(self) -> None:
        if (self.control_features is None) != (self.control_captions is None):
            raise ConfigError("control_features, control_captions: name both or none")


def control_recall(
    config: ControlConfig, features: Dataset, captions: Dataset, split: str
) -> tuple[Recall, int] | None:
    """The control's recall on a split; its penalty is chosen on the validation split.

    Args:
        config: see there; the control is not `none`.
        features: of kind `features`.
        captions: beside it, with captions and split.
        split: to measure on.

    Returns:
        The recall and of how many pictures; None where there is nothing to fit it on.

    Raises:
        ConfigError: what it is to be fitted on is of another encoder.
    """
    fitted_on = features, captions
    if config.control_features is not None and config.control_captions is not None:
        fitted_on = (
            open_evaluation_view(config.control_features),
            open_captions(config.control_captions),
        )
        check_same_encoder(features, fitted_on[0])
        check_side_by_side(*fitted_on)
    limits = {"train": config.control_pictures, "validation": _VALIDATION_PICTURES}
    sets = {}
    for name, limit in limits.items():
        logger.info("control: reads split=%s", name)
        sets[name] = _pooled_pictures(*fitted_on, name, limit)
        if name == "train" and not any(sets[name][1]):
            logger.warning("no control: %s has no caption to train it on", fitted_on[1].folder)
            return None
    logger.info("control: reads split=%s to measure", split)
    sets[_MEASURED] = _pooled_pictures(features, captions, split, None)
    frozen = FrozenText(config.control)
    owners = {name: _owners(texts) for name, (_, texts) in sets.items()}
    embedded = {
        name: frozen.embed([t for its in texts for t in its]) for name, (_, texts) in sets.items()
    }
    pictures, texts = sets["train"]
    targets = caption_means(embedded["train"], torch.from_numpy(owners["train"]), len(texts))
    told = torch.tensor([bool(its) for its in texts])
    ridges = fit_ridges(pictures[told], targets[told], _PENALTIES)

    def measure(ridge: Ridge, name: str) -> Recall:
        mapped = ridge(sets[name][0]).numpy()
        return recall(ranks(mapped, embedded[name].numpy(), owners[name]))

    chosen_on = "validation" if len(embedded["validation"]) else "train"
    best = max(ridges, key=lambda ridge: _mean_at_1(measure(ridge, chosen_on)))
    logger.info("control: penalty=%g chosen on %s", best.penalty, chosen_on)
    return measure(best, _MEASURED), len(sets[_MEASURED][1])


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
