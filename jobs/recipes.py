"""`--recipe NAME`: complete settings of a run by name, for each command that takes part in it.

A recipe gives options to a command as a saved configuration does; `--config` and options on the
command line override it. The paper's name every setting that decides what is learned, also where
it is a default, so that they stay what they are when a default changes.
"""

from typing import Any

from pipeline.errors import ConfigError

Options = dict[str, Any]
"""Names of options, with underscores, and their values."""

_VISION: dict[str, Options] = {
    "vit-l": {"encoder": "timm:vit_large_patch14_clip_224.openai"},
    "vit-g": {"encoder": "timm:eva_giant_patch14_clip_224.laion400m"},
}
_LANGUAGE: dict[str, Options] = {
    "opt-2.7b": {"language_model": "hf:facebook/opt-2.7b"},
    "opt-6.7b": {"language_model": "hf:facebook/opt-6.7b"},
    "flant5-xl": {"language_model": "hf:google/flan-t5-xl"},
}
_STAGE1_BATCH = {"vit-l": 2320, "vit-g": 1680}
_STAGE2_BATCH = {"opt-2.7b": 1920, "opt-6.7b": 1920, "flant5-xl": 1520}

_PAPER_FEATURES: Options = {
    "weights": "pretrained",
    "layer": -2,
    "crop": "squash",
    "dtype": "fp16",
    "views": 1,
    "min_area": 0.5,
}
"""One view, for each takes 93 TB of the paper's pictures (docs/reproduce-blip2.md); with `--views`
beside the recipe the others are the paper's crops."""
_PAPER_OPTIMIZER: Options = {
    "learning_rate": 1e-4,
    "warmup_steps": 2000,
    "weight_decay": 0.05,
    "beta1": 0.9,
    "beta2": 0.98,
    "clip_norm": 1.0,
}
_PAPER_STAGE1: Options = {
    "start": "hf:bert-base-uncased",
    "num_queries": 32,
    "embed_dim": 256,
    "dropout": 0.1,
    "max_text_tokens": 32,
    "label_smoothing": 0.1,
    "gather_gradient": True,
    "itg_joins_at": 0.0,
    "itm_joins_at": 0.0,
    "itm_hardens_until": 0.0,
    "steps": 250_000,
    "final_learning_rate": 0.0,
    **_PAPER_OPTIMIZER,
}
_PAPER_CAPFILT: Options = {
    "judge": ["clip:openai/clip-vit-large-patch14"],
    "split": "train",
    "method": "nucleus",
    "num_captions": 10,
    "top_p": 0.9,
    "min_tokens": 2,
}
"""The paper's ten captions of a picture and the CLIP that ranks them; p is BLIP's."""
_PAPER_SELECTION: Options = {"by": "itc", "top_k": 2}
_PAPER_STAGE2: Options = {
    "prompt": "",
    "max_language_tokens": 32,
    "steps": 80_000,
    "final_learning_rate": 5e-5,
    **_PAPER_OPTIMIZER,
}

_SIZES = (
    *("start", "num_layers", "width", "num_heads", "vocab_size"),
    *("num_queries", "embed_dim", "dropout", "max_text_tokens"),
)
"""Options of train-stage1 that decide how large the Q-Former is."""

_DEMO: dict[str, Options] = {
    "features": {"encoder": "offline:efficientnet_lite0"},
    "train-stage1": {
        "start": "scratch",
        "num_layers": 3,
        "width": 192,
        "num_heads": 4,
        "num_queries": 8,
        "embed_dim": 128,
        "vocab_size": 2000,
        "steps": 280,
        "batch_size": 96,
        "learning_rate": 1e-3,
        "final_learning_rate": 2e-4,
        "warmup_steps": 40,
        "dropout": 0,
        "itg_joins_at": 0.75,
        "itm_joins_at": 0.4,
        "itm_hardens_until": 2,
        "log_every": 10,
        "validate_every": 50,
        "checkpoint_every": 50,
    },
    "capfilt": {"method": "nucleus", "num_captions": 5, "top_p": 0.9, "min_tokens": 2},
    # A judge that sees nothing says 1/3, for so many of the pairs that it learned from match.
    "select-captions": {"top_k": 2, "web_threshold": 0.25, "synthetic_threshold": 0.25},
    "train-stage2": {
        "language_model": "offline:smollm2",
        "prompt": "a picture of",
        "steps": 80,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "final_learning_rate": 0,
        "warmup_steps": 10,
        "log_every": 5,
        "validate_every": 20,
        "checkpoint_every": 20,
        "validation_pictures": 16,
    },
}

_DEMO_TUNED: Options = {
    "steps": 150,
    "batch_size": 96,
    "learning_rate": 3e-4,
    "final_learning_rate": 0,
    "warmup_steps": 15,
    "log_every": 10,
    "validate_every": 50,
    "checkpoint_every": 50,
}
"""Of a stage 1 that goes on from the demo's on clean pairs."""


def _paper(vision: str, language: str) -> dict[str, Options]:
    """BLIP-2's own run (section 3.4 of the paper) with these frozen parts."""
    return {
        "features": _VISION[vision] | _PAPER_FEATURES,
        "train-stage1": _PAPER_STAGE1 | {"batch_size": _STAGE1_BATCH[vision]},
        "capfilt": _PAPER_CAPFILT,
        "select-captions": _PAPER_SELECTION,
        "train-stage2": _PAPER_STAGE2
        | _LANGUAGE[language]
        | {"batch_size": _STAGE2_BATCH[language]},
    }


def _planned(recipe: dict[str, Options]) -> dict[str, Options]:
    """A recipe with the options of `viaduct plan` that tell of the same run."""
    features, stage1, stage2 = (recipe[c] for c in ("features", "train-stage1", "train-stage2"))
    taken = ("encoder", "layer", "dtype", "views"), _SIZES, ("language_model",)
    options = {
        name: part[name]
        for part, names in zip((features, stage1, stage2), taken, strict=True)
        for name in names
        if name in part
    }
    for stage, part in (("stage1", stage1), ("stage2", stage2)):
        options |= {f"{stage}_{name}": part[name] for name in ("steps", "batch_size")}
    return recipe | {"plan": options}


def _changed(recipe: dict[str, Options], **changes: Options) -> dict[str, Options]:
    """A recipe with other options for some commands, whose hyphens are underscores here."""
    changed = {name.replace("_", "-"): options for name, options in changes.items()}
    return {name: options | changed.get(name, {}) for name, options in recipe.items()}


RECIPES: dict[str, dict[str, Options]] = {
    f"blip2-{vision}-{language}": _planned(_paper(vision, language))
    for vision in _VISION
    for language in _LANGUAGE
} | {
    # Few, and the likely ones: its caption head has hardly begun.
    "demo": _planned(_changed(_DEMO, capfilt={"limit": 300, "num_captions": 2, "top_p": 0.5})),
    "demo-full": _planned(
        _changed(
            _DEMO, train_stage1={"steps": 1500, "itm_hardens_until": 1}, train_stage2={"steps": 300}
        )
    ),
    "demo-captioner": {"train-stage1": _DEMO_TUNED | {"losses": "itg"}},
    "demo-judge": {"train-stage1": _DEMO_TUNED | {"losses": "itc,itm"}},
}
"""Name to command to options."""


def recipe_options(name: str, command: str) -> Options:
    """What a recipe says of a command.

    Raises:
        ConfigError: there is none of that name, or it has nothing for this command.
    """
    if name not in RECIPES:
        raise ConfigError(f"recipe: {name!r} is none of {', '.join(RECIPES)}")
    if command not in RECIPES[name]:
        raise ConfigError(f"recipe: {name} says nothing of {command}, but of {told(name)}")
    return RECIPES[name][command]


def told(name: str) -> str:
    """The commands that a recipe has options for."""
    return ", ".join(RECIPES[name])


def takes_recipe(command: str) -> bool:
    """Whether some recipe has options for it."""
    return any(command in recipe for recipe in RECIPES.values())
