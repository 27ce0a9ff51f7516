"""A training's folder: begun, gone on with, ended."""

from dataclasses import replace
from typing import Any

import pyarrow as pa

from jobs.build import running
from jobs.training.boards import check_wandb
from jobs.training.group import Place, RanksConfig, run_ranks
from jobs.training.rank import live
from jobs.training.training import TOKENIZER, Training
from model.checkpoint import FILE, Checkpoint, kept_steps, publish_last
from pipeline.dataset import DRAFT
from pipeline.draft import Draft
from pipeline.errors import ConfigError


def train(training: Training, job: Any, config: RanksConfig, place: Place) -> Checkpoint:
    """Train to the last step, from the last checkpoint if there is one.

    Args:
        training: see there.
        job: the configuration to write beside the output.
        config, place: see there.

    Raises:
        ConfigError: the folder holds something else, or a rank raised it.
        ViaductError: the ranks kept failing.
    """
    folder = training.folder
    draft = _begin(training)
    if draft is None:
        return Checkpoint.open(folder)
    if training.loop.wandb is not None:
        check_wandb()
    ranks, threads = place.num_ranks, place.threads
    with (
        running(job, draft) as log,
        log.phase("train", ranks=ranks, threads=threads) as entry,
    ):
        if folder.size(TOKENIZER) is None:
            folder.publish(TOKENIZER, training.tokenizer().encode())
        # What made the tokenizer holds all captions; ranks read it from the folder.
        shipped = {
            "training": replace(training, tokenizer=str, claim=log.claim),
            "threads": threads,
        }
        entry["failures"] = run_ranks(live, shipped, config, place)
        log.claim.check()
        whole = publish_last(folder, kept_steps(folder)[-1])
        folder.remove_file(DRAFT)
        return whole


def _begin(training: Training) -> Draft | None:
    """Begin a training folder or go on with it; None where nothing is left to do.

    Raises:
        ConfigError: the folder holds something else, or what another configuration began.
    """
    folder, lineage = training.folder, training.lineage
    if folder.size(FILE) is None:
        return Draft.begin(folder, f"stage{training.stage}", pa.schema([]), lineage)
    if difference := Checkpoint.open(folder).lineage.difference(lineage):
        raise ConfigError(f"{folder}: was trained otherwise ({difference}); choose another")
    folder.remove_file(DRAFT)
    return None
