"""Names translate one to one, and what nothing stands for is an error."""

import pytest
import torch

from model.exchange.weight_names import TRANSFORMERS, lavis_names, renamed, under_their_names
from model.stage1 import Stage1
from model.stage2 import Stage2
from pipeline.errors import ConfigError

FORMATS = {"lavis": lavis_names(), "t5": lavis_names("t5_proj"), "transformers": TRANSFORMERS}


@pytest.mark.parametrize("form", FORMATS)
def test_each_of_our_names_goes_there_and_back(tiny, tokenizer, form):
    names = FORMATS[form]
    for module in (Stage1(tiny(), tokenizer), Stage2(tiny(), 12)):
        own = list(module.state_dict())
        theirs = [names.theirs(name) for name in own]
        without = [ours for ours, its in zip(own, theirs, strict=True) if its is None]
        if form == "transformers" and isinstance(module, Stage1):
            assert without == [n for n in own if n == "temperature" or ".head." in n]
        else:
            assert without == []
        found = [name for name in theirs if name is not None]
        assert len(set(found)) == len(found)
        assert [names.ours(name) for name in found] == [n for n in own if n not in without]


@pytest.mark.parametrize(
    ("form", "ours", "theirs"),
    [
        ("lavis", "temperature", "temp"),
        ("lavis", "projection.bias", "opt_proj.bias"),
        ("t5", "projection.weight", "t5_proj.weight"),
        ("transformers", "projection.weight", "language_projection.weight"),
        ("transformers", "ln_vision.weight", "vision_model.post_layernorm.weight"),
        (
            "lavis",
            "qformer.layers.10.look.key.bias",
            "Qformer.bert.encoder.layer.10.crossattention.self.key.bias",
        ),
        (
            "transformers",
            "qformer.layers.3.attention.norm.weight",
            "qformer.encoder.layer.3.attention.output.LayerNorm.weight",
        ),
        ("lavis", "qformer.head.bias", "Qformer.cls.predictions.bias"),
        ("lavis", "qformer.head.dense.bias", "Qformer.cls.predictions.transform.dense.bias"),
    ],
)
def test_names_that_are_known(form, ours, theirs):
    assert FORMATS[form].theirs(ours) == theirs
    assert FORMATS[form].ours(theirs) == ours


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "name",
    [
        "",
        "weight",
        "temp.weight.x",
        "qformer.encoder.layer.x.attention.attention.key.bias",
        "a.bias",
    ],
)
def test_what_nothing_stands_for_has_no_name(form, name):
    assert FORMATS[form].ours(name) is None
    assert FORMATS[form].theirs(name) is None
    with pytest.raises(ConfigError, match=f"{name}: unexpected"):
        renamed({name: torch.zeros(1)}, FORMATS[form], [])


def test_reasons_come_before_names():
    left_out = [(r"itm_head\.(weight|bias)", "of no use"), (r"odd\..+", "odd")]
    theirs = {n: torch.ones(1) for n in ("itm_head.bias", "odd.name", "temp", "itm_head.weight")}
    ours, passed = renamed(theirs, lavis_names(), left_out)
    assert list(ours) == ["temperature"]
    assert passed == {"of no use": ["itm_head.bias", "itm_head.weight"], "odd": ["odd.name"]}


def test_a_reason_is_for_whole_names():
    for name in ("itm_head.bias.odd", "itm_head.biased"):
        with pytest.raises(ConfigError, match=rf"{name}: unexpected"):
            renamed({name: torch.zeros(1)}, lavis_names(), [(r"itm_head\.bias", "of no use")])


def test_what_has_no_place_keeps_our_name():
    ours = {"temperature": torch.ones(()), "itm_head.bias": torch.ones(2)}
    theirs, rest = under_their_names(ours, TRANSFORMERS)
    assert list(theirs) == ["itm_head.bias"]
    assert list(rest) == ["temperature"]
