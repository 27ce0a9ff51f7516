"""What of a loop's configuration changes the weights, and what cannot be."""

import dataclasses

import pytest

from jobs.training import LoopConfig
from pipeline.errors import ConfigError


def test_how_often_one_looks_belongs_to_no_lineage():
    loop = LoopConfig(log_every=5, validate_every=10, checkpoint_every=10)
    other = LoopConfig(log_every=1, validate_every=2, checkpoint_every=3, keep_checkpoints=9)
    assert loop.lasting == other.lasting
    assert loop.lasting == dataclasses.replace(loop, wandb="project").lasting
    names = {"steps", "batch_size", "seed", "compile", "accumulate", "precision"}
    assert set(loop.lasting) == names


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("accumulate", 0, "accumulate: 0 is too small"),
        ("accumulate", 9, "batch_size: 1680 is no multiple of accumulate=9"),
        ("precision", "fp16", "precision: 'fp16' is neither auto, fp32 nor bf16"),
        ("seed", -1, "seed: -1 is too small"),
        ("checkpoint_every", 75, "checkpoint_every: 75 is no multiple of log_every=50"),
    ],
)
def test_what_cannot_be_is_named(field, value, told):
    with pytest.raises(ConfigError, match=told):
        LoopConfig(**{field: value})
