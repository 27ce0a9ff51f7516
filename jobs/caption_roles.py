"""Who may write captions, and who may judge them: checkpoints that have learned it."""

import logging
from collections.abc import Sequence
from typing import Any

from model.checkpoint import Checkpoint
from model.heads import head_states
from model.objectives import ITC, ITG, ITM
from model.pretrained.clip import Clip
from pipeline.errors import ConfigError

logger = logging.getLogger(__name__)

_CLIP = "clip:"

Judge = Checkpoint | Clip
"""Who scores captions: a checkpoint of stage 1, or a CLIP."""


def judge_name(judge: Judge) -> str:
    """As it stands beside its scores."""
    if isinstance(judge, Clip):
        return f"{_CLIP}{judge.name}"
    return f"stage1:{judge.digest[:12]}"


def open_captioner(location: str) -> Checkpoint:
    """The checkpoint that writes.

    Raises:
        ConfigError: there is none, or its caption head was never trained. One that was, before the
            last training left it out, is warned about.
    """
    captioner = Checkpoint.open(location, 1)
    state = head_states(captioner.lineage)[ITG]
    if state == "untrained":
        raise ConfigError(
            f"captioner: {location}: its caption head was never trained; name a checkpoint that "
            f"was trained by {ITG}"
        )
    if state == "left":
        logger.warning("captioner: %s: its last training was not by %s", location, ITG)
    return captioner


def open_judges(locations: Sequence[str], captioner: Checkpoint | None) -> tuple[Judge, ...]:
    """The judges in the order in which they are named; of none, the captioner.

    Raises:
        ConfigError: there is none of a name, two have one name, or one has not learned to judge.
    """
    judges: list[Judge] = []
    for name in locations:
        is_clip = name.startswith(_CLIP)
        judge = Clip.of(name.removeprefix(_CLIP)) if is_clip else Checkpoint.open(name, 1)
        if judge_name(judge) in map(judge_name, judges):
            raise ConfigError(f"judge: {name}: another one is {judge_name(judge)} already")
        if isinstance(judge, Checkpoint):
            _check_judge(judge, f"judge: {name}", "name another")
        judges.append(judge)
    if captioner is not None and not judges:
        _check_judge(captioner, f"captioner: {captioner.folder}", "name a --judge")
        judges.append(captioner)
    if any(is_captioner(judge, captioner) for judge in judges):
        logger.warning(
            "the captioner judges what it wrote itself, and forgives it; name a --judge that "
            "was trained apart from it, or clip:NAME"
        )
    return tuple(judges)


def is_captioner(judge: Judge, captioner: Checkpoint | None) -> bool:
    """Whether a judge has the captioner's weights."""
    if captioner is None or isinstance(judge, Clip):
        return False
    weights = [its.files["weights"]["digest"] for its in (captioner, judge)]
    return weights[0] == weights[1]


def tells_match(judge: Judge) -> bool:
    """Whether its match probabilities mean something: its last training was by ITM too."""
    return isinstance(judge, Checkpoint) and head_states(judge.lineage)[ITM] == "trained"


def roles_to_tell(captioner: Checkpoint | None, judges: Sequence[Judge]) -> dict[str, Any]:
    """What the lineage says of who wrote and who judged."""
    told: dict[str, Any] = {
        "judges": [
            {
                "name": judge_name(judge),
                "digest": judge.digest,
                "is_captioner": is_captioner(judge, captioner),
            }
            for judge in judges
        ]
    }
    if captioner is not None:
        told["captioner"] = {"digest": captioner.digest, "stage": 1}
    return told


def _check_judge(judge: Checkpoint, name: str, instead: str) -> None:
    """Raises ConfigError where it has not learned to judge; the line begins with `name`."""
    states = head_states(judge.lineage)
    if states[ITC] == "untrained" or "trained" not in (states[ITC], states[ITM]):
        raise ConfigError(
            f"{name}: was not trained by {ITC}, and so cannot judge captions; {instead}"
        )
    if states[ITC] == "left":
        logger.warning("%s: its last training was not by %s: mind its similarities", name, ITC)
    if states[ITM] != "trained":
        logger.info("%s: was not trained by %s: it tells no match probability", name, ITM)
