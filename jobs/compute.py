"""How workers compute with a trained model: how much at once, and where."""

from dataclasses import dataclass
from typing import Any, Literal

from pipeline.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How a model that was trained is put to work."""

    batch_size: int = 64
    """Pictures or captions at once; of pictures that are captioned, each with all its captions.
    Belongs to the lineage, for the last bits."""

    threads: int = 1
    """Threads in each worker on a CPU; belongs to the lineage like batch_size."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where to compute; `auto` takes GPUs where Ray has any. Belongs to the lineage."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not positive")

    def lasting(self, device: str) -> dict[str, Any]:
        """What belongs to the lineage, on the device that was found."""
        return {
            "batch_size": self.batch_size,
            "threads": self.threads if device == "cpu" else None,
            "device": device,
        }
