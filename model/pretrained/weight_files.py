"""The .safetensors files of a folder as transformers writes it, and the tensors in them."""

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.errors import ConfigError, first_line


def weight_files(folder: Path) -> list[Path]:
    """Its `model.safetensors`, or `model-00001-of-00002.safetensors` and so on.

    Raises:
        ConfigError: there are none.
    """
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise ConfigError(f"{folder}: holds no model*.safetensors")
    return files


def read_tensors(
    folder: Path, wanted: Callable[[str], bool]
) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of a folder's .safetensors files, on the CPU.

    Args:
        folder: of a checkpoint, in one file or several.
        wanted: which names to read.

    Returns:
        What is wanted, and the names of the others.

    Raises:
        ConfigError: there are no such files, or one is damaged.
    """
    tensors: dict[str, Tensor] = {}
    others: list[str] = []
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - it is no mapping
                    if wanted(name):
                        tensors[name] = opened.get_tensor(name)
                    else:
                        others.append(name)
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{file}: cannot be read ({first_line(error)})") from error
    return tensors, others
