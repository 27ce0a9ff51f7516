"""The objectives of stage 1: which to train by, and when each joins."""

import math
from dataclasses import dataclass, replace
from typing import cast

from pipeline.errors import ConfigError

_LONG = 10_000
"""Steps from which a training has the paper's schedule."""

ITC, ITM, ITG = LOSSES = ("itc", "itm", "itg")


@dataclass(frozen=True, kw_only=True)
class ObjectivesConfig:
    """The objectives of stage 1."""

    losses: str = ",".join(LOSSES)
    """Which of itc, itm and itg to train by, with commas between them. What is left out is not
    computed, and weights that none of the others reads stay as they are. ITC is what finds hard
    negatives: without it ITM's are drawn by chance."""

    label_smoothing: float = 0.1
    """Share of each target of ITC and ITG spread over all candidates."""

    gather_gradient: bool = True
    """Let ITC's gradient reach pairs on other ranks; without it, it comes out too short."""

    itg_joins_at: float = 0.0
    """Share of the steps after which ITG joins; the paper's is 0. In short runs from scratch ITC
    learns faster, and a step costs less, while it is alone."""

    itm_joins_at: float | None = None
    """Share of the steps after which ITM joins; by default the paper's 0 in trainings of 10,000
    steps or more, of a checkpoint (--init) or without ITC, and 0.4 in other shorter ones: there ITM
    stays at its prior unless ITC has begun to tell pictures apart."""

    itm_hardens_until: float | None = None
    """Share of the steps after which ITM's negatives are as hard as ITC can find; from the moment
    it joins until then they turn so from chance. By default the paper's 0, hard at once, in
    trainings of 10,000 steps or more or of a checkpoint (--init), and 1 in other shorter ones.
    Above 1 they never quite get there, which very short ones need."""

    def __post_init__(self) -> None:
        for name in ("label_smoothing", "itg_joins_at", "itm_joins_at"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not in [0, 1]")
        if not 0 <= (self.itm_hardens_until or 0) < math.inf:
            raise ConfigError(f"itm_hardens_until: {self.itm_hardens_until} is not in [0, inf)")
        names = self.losses.split(",")
        if not set(names) <= set(LOSSES) or len(set(names)) < len(names):
            raise ConfigError(
                f"losses: {self.losses!r} is no list of {', '.join(LOSSES)} with commas between "
                "them, each at most once"
            )
        begins = {ITC: 0.0, ITM: self.itm_joins_at or 0.0, ITG: self.itg_joins_at}
        if min(begins[name] for name in names) > 0:
            later = " and ".join(f"{name}_joins_at={begins[name]}" for name in names)
            raise ConfigError(f"losses: {self.losses}: none is there at the first step ({later})")

    @property
    def chosen(self) -> frozenset[str]:
        """The losses to train by."""
        return frozenset(self.losses.split(","))

    def resolved(self, steps: int, *, trained: bool = False) -> "ObjectivesConfig":
        """With numbers in place of the defaults that depend on a training, its losses in order.

        Args:
            steps: of the training.
            trained: whether it goes on from a checkpoint, whose ITC tells pictures apart.
        """
        early = steps >= _LONG or trained or ITC not in self.chosen
        joins, until = (0.0, 0.0) if early else (0.4, 1.0)
        return replace(
            self,
            losses=",".join(name for name in LOSSES if name in self.chosen),
            itm_joins_at=joins if self.itm_joins_at is None else self.itm_joins_at,
            itm_hardens_until=until if self.itm_hardens_until is None else self.itm_hardens_until,
        )

    def joined(self, *, itm: bool, itg: bool) -> frozenset[str]:
        """The losses of a step at which ITM and ITG have joined, or have not."""
        absent = {name for name, there in ((ITM, itm), (ITG, itg)) if not there}
        return self.chosen - absent

    def has_itg(self, step: int, steps: int) -> bool:
        """Whether ITG has joined at a step."""
        return ITG in self.chosen and step >= self.itg_joins_at * steps

    def itm_hardness(self, step: int, steps: int) -> float | None:
        """Hardness of ITM's negatives at a step; None where ITM is not there."""
        its = self.resolved(steps)
        joins, until = cast(float, its.itm_joins_at), cast(float, its.itm_hardens_until)
        joins, until = joins * steps, until * steps
        if ITM not in its.chosen or step < joins:
            return None
        if ITC not in its.chosen:
            return 0.0
        return 1.0 if step >= until else (step - joins) / (until - joins)
