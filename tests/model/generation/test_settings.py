"""Settings that cannot be are named."""

import math

import pytest

from model.generation.settings import GenerationConfig
from pipeline.errors import ConfigError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "best"}, "method: 'best'"),
        ({"num_beams": 0}, "num_beams: 0 is not positive"),
        ({"num_captions": 0}, "num_captions: 0 is not positive"),
        ({"num_captions": 4}, "num_captions: 4, but num_beams=3"),
        ({"num_captions": 2, "method": "greedy"}, "num_captions: 2, but greedy"),
        ({"top_p": 0.0}, "top_p: 0.0 is not in"),
        ({"top_p": 1.1}, "top_p: 1.1 is not in"),
        ({"top_p": math.nan}, "top_p: nan is not in"),
        ({"min_tokens": -1}, "min_tokens: -1 is not in 0 to max_tokens=30"),
        ({"min_tokens": 31}, "min_tokens: 31 is not in 0 to max_tokens=30"),
        ({"max_tokens": 1, "min_tokens": 0}, "max_tokens: 1 leaves"),
        ({"repetition_penalty": 0.0}, "repetition_penalty: 0.0 is not in"),
        ({"repetition_penalty": math.inf}, "repetition_penalty: inf is not in"),
        ({"seed": -1}, "seed: -1 is not in"),
    ],
)
def test_a_setting_that_cannot_be_is_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        GenerationConfig(**changes)
