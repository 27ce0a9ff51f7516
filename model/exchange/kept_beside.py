"""What a checkpoint holds and another format does not, in a file beside the exported weights.

An import that finds it takes from it what the format lost, so that export and import give the same
weights, bit for bit.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pipeline.errors import ConfigError, first_line
from pipeline.lineage import Lineage

FILE = "viaduct.safetensors"
_FORMAT = "viaduct-beside/1"


@dataclass(frozen=True)
class Kept:
    """Of a checkpoint, with the weights that the other format has no place for."""

    stage: int
    step: int
    config: dict[str, Any]
    lineage: Lineage
    tokenizer: str | None
    """Of the Q-Former, as JSON; None in stage 2, which has no text."""
    frozen_digest: str | None
    """Of the frozen weights in the export (`digests.tensors_digest`); None where it has none."""
    tensors: dict[str, Tensor]
    """Under our names."""

    def write(self, folder: Path) -> None:
        """Write the file."""
        says = {
            "format": _FORMAT,
            "stage": self.stage,
            "step": self.step,
            "config": self.config,
            "lineage": self.lineage.to_json(),
            "tokenizer": self.tokenizer,
            "frozen_digest": self.frozen_digest,
        }
        content = save(self.tensors, metadata={"viaduct": json.dumps(says)})
        (folder / FILE).write_bytes(content)

    @staticmethod
    def read(folder: Path) -> "Kept | None":
        """Read the file; None where there is none.

        Raises:
            ConfigError: it is damaged or of a later format.
        """
        file = folder / FILE
        if not file.exists():
            return None
        try:
            with safe_open(file, framework="pt") as opened:
                says = json.loads(opened.metadata()["viaduct"])
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            if says["format"] != _FORMAT:
                raise ConfigError(f"{file}: is of the format {says['format']}, not {_FORMAT}")
            return Kept(
                says["stage"],
                says["step"],
                says["config"],
                Lineage.from_json(says["lineage"]),
                says["tokenizer"],
                says["frozen_digest"],
                tensors,
            )
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{file}: damaged ({first_line(error)}); remove it") from error
