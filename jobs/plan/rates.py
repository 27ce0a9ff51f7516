"""How fast machines are: measured on this one, or given."""

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError

GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How fast machines are; what is not given here is taken from --rates-file."""

    core_gflops: float | None = None
    """Float32 matrix products of one CPU core, in GFLOP/s. Needed without GPUs."""

    gpu_tflops: float | None = None
    """Half-precision matrix products of one GPU, in TFLOP/s. Needed with GPUs."""

    encoder_share: float | None = None
    """Share of that rate which the frozen encoder reaches, 0 to 1."""

    train_share: float | None = None
    """Share of that rate which training reaches, 0 to 1."""

    ingest_per_s: float | None = None
    """Web pictures that one core decodes, reduces and stores a second."""

    curate_per_s: float | None = None
    """Stored pictures that one core decodes and hashes a second."""

    decode_per_s: float | None = None
    """Stored pictures that one core decodes and crops for the encoder a second."""

    picture_bytes: float | None = None
    """A stored picture, in bytes, on average."""

    read_gb_per_s: float | None = None
    """Reading from storage, all machines together, in GB/s; without it nothing waits for it."""

    write_gb_per_s: float | None = None
    """Writing to storage, likewise."""

    memory_gb_per_s: float | None = None
    """Copying features from memory into batches, all machines together, in GB/s."""

    ram_gb: float | None = None
    """Memory of all machines in which features may stay, in GB; where they fit, training reads
    them from storage once."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not value > 0:
                raise ConfigError(f"{name}: {value} is not positive")
            if value is not None and name.endswith("_share") and value > 1:
                raise ConfigError(f"{name}: {value} is more than 1")

    def needed(self, name: str) -> float:
        """A rate that is there (`Machines` has seen to it)."""
        return float(getattr(self, name))

    def over(self, measured: "Rates") -> "Rates":
        """These where they are given, else the measured ones."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return replace(measured, **given)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A file of rates: what was measured, and on what."""

    rates: Rates
    device: str
    """Where the shares were measured: `cpu` or `cuda`."""
    encoder: str
    """With which encoder."""
    measured: dict[str, Any]
    """The machine and the plain measurements, for the reader."""

    def write(self, path: str) -> None:
        """Write the file, as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def read(path: str) -> "Calibration | None":
        """The file, or None where there is none.

        Raises:
            ConfigError: it is no file of rates.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            names = {field.name for field in fields(Calibration)}
            rates = Rates(**content.pop("rates"))
            return Calibration(rates=rates, **{name: content[name] for name in names - {"rates"}})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{path}: is no file of rates ({error}); viaduct plan --calibrate writes one"
            ) from error

    def rates_for(self, *, on_gpus: bool) -> Rates:
        """What of this holds on GPUs or on CPUs: shares of one say nothing of the other."""
        if on_gpus == (self.device == "cuda"):
            return self.rates
        return replace(self.rates, encoder_share=None, train_share=None)
