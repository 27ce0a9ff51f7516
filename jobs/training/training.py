"""A training to run."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from jobs.training.config import LoopConfig
from jobs.training.learner import Learner
from model.optimizer import OptimizerConfig
from pipeline.claim import Claim
from pipeline.lineage import Lineage
from pipeline.storage import Folder

TOKENIZER = ".tokenizer.json"
"""Of the Q-Former; made once, before the first step, and part of each checkpoint."""


@dataclass(frozen=True)
class Training:
    """A training to run: pickled to each rank."""

    folder: Folder
    stage: int
    lineage: Lineage
    loop: LoopConfig
    optimizer: OptimizerConfig
    make_learner: Callable[[str, torch.device], Learner]
    """From the tokenizer and the device, in each rank."""
    tokenizer: Callable[[], str]
    """The tokenizer as JSON; asked for once, in the driver."""
    claim: Claim | None = None
    """On the folder, once it is begun."""

    def check_claim(self) -> None:
        """Look whether the folder is still this job's, before something is written there.

        Ranks may outlive their driver, and another job may go on in the folder by then.

        Raises:
            Lost: it is another's.
        """
        if self.claim is not None:
            self.claim.check()
