"""Which heads of a stage-1 checkpoint were trained, as its lineage tells."""

from collections.abc import Mapping
from typing import Any, Literal

from model.objectives import ITG, ITM, LOSSES
from pipeline.lineage import Lineage

HeadState = Literal["trained", "left", "untrained"]
"""`left`: an earlier training had it, perhaps, and a later one by other losses has changed the
layers below it. `untrained`: it is as chance, or a BERT, has made it."""


def head_states(lineage: Lineage) -> dict[str, HeadState]:
    """What is known of the head of each objective, `itc`, `itm` and `itg`.

    A lineage has but the digest of the checkpoint that a training went on from (`--init`), so a
    head that the last training left out counts as `left` then, whatever it was.

    Args:
        lineage: of the checkpoint, from `train-stage1` or `import`.
    """
    if lineage.job == "import":
        told = lineage.config.get("heads", {})
        return {name: told.get(name, "trained") for name in LOSSES}
    chosen = lineage.config.get("losses", ",".join(LOSSES)).split(",")
    otherwise: HeadState = "left" if "init" in lineage.frozen else "untrained"
    has = {name: name in chosen and _joins(name, lineage.config) for name in LOSSES}
    return {name: "trained" if has[name] else otherwise for name in LOSSES}


def heads_to_tell(states: Mapping[str, HeadState]) -> dict[str, Any]:
    """What the lineage of an import says of heads: nothing where all are trained."""
    told = {name: state for name, state in states.items() if state != "trained"}
    return {"heads": told} if told else {}


def _joins(name: str, config: Mapping[str, Any]) -> bool:
    """Whether an objective of a training joins before its end."""
    return name not in (ITM, ITG) or float(config.get(f"{name}_joins_at", 0)) < 1
