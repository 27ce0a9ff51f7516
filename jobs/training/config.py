"""How long to train, and what to keep of it."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from pipeline.errors import ConfigError

_NO_MATTER = (
    *("log_every", "validate_every", "validation_pictures"),
    *("checkpoint_every", "keep_checkpoints", "wandb"),
)
"""What changes no weight."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long to train, and what to keep of it."""

    steps: int = 250_000
    """Updates."""

    batch_size: int = 1680
    """Pictures an update, over all ranks and micro-batches."""

    accumulate: int = 1
    """Micro-batches an update, one after the other, where its pictures do not fit into memory at
    once. ITC and ITM find their negatives within one micro-batch, over all ranks: in 4 of them each
    pair meets a quarter as many as in one large batch, so their losses are others, means over the
    micro-batches. Stage 2's loss is that of the large batch."""

    seed: int = 0
    """Of new weights, the order of pictures, captions drawn, negatives and dropout."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """What layers compute in; weights and losses are always float32. `auto` is bf16 on GPUs that
    have it, and fp32 elsewhere: a CPU's bf16 is seldom faster, and its rounding is felt."""

    log_every: int = 50
    """Steps over which a line of metrics is averaged."""

    validate_every: int = 2000
    """Steps between two validations; the last step has one too."""

    validation_pictures: int = 512
    """Pictures of the validation split that are looked at, at most."""

    checkpoint_every: int = 2000
    """Steps between two checkpoints; the last step has one too."""

    keep_checkpoints: int = 2
    """Checkpoints kept, the last ones; beside them the best of those that were validated: by recall
    in stage 1 (without ITC by ITM's accuracy, without both by ITG's loss), by loss in stage 2.
    `checkpoints/best.json` names it."""

    wandb: str | None = None
    """Project of Weights & Biases that gets the metrics too; needs `pip install wandb` and a login,
    or WANDB_MODE=offline."""

    compile: bool = False
    """Compile the Q-Former's layers with torch.compile: the first steps take minutes, and the last
    bits of losses are others. Needs a C++ compiler."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "seed" else 1
            if type(value) is int and value < least:
                raise ConfigError(f"{field.name}: {value} is too small")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ConfigError(f"precision: {self.precision!r} is neither auto, fp32 nor bf16")
        for name in ("validate_every", "checkpoint_every"):
            if getattr(self, name) % self.log_every:
                raise ConfigError(
                    f"{name}: {getattr(self, name)} is no multiple of log_every={self.log_every}"
                )
        if self.batch_size % self.accumulate:
            raise ConfigError(
                f"batch_size: {self.batch_size} is no multiple of accumulate={self.accumulate}"
            )

    @property
    def micro_batch_size(self) -> int:
        """Pictures that are looked at together, over all ranks."""
        return self.batch_size // self.accumulate

    @property
    def lasting(self) -> dict[str, Any]:
        """What changes the weights, if only in their last bits."""
        names = (field.name for field in fields(self) if field.name not in _NO_MATTER)
        return {name: getattr(self, name) for name in names}
