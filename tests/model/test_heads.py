"""What a checkpoint's heads can do is read off the losses that it was trained by."""

import pytest

from model.heads import head_states, heads_to_tell
from pipeline.lineage import Lineage

INIT = {"init": {"digest": "0" * 64}}
ALL = {"itc": "trained", "itm": "trained", "itg": "trained"}


@pytest.mark.parametrize(
    ("config", "frozen", "expected"),
    [
        ({}, {}, {}),
        ({}, INIT, {}),
        ({"losses": "itc,itm"}, {}, {"itg": "untrained"}),
        ({"losses": "itc,itm"}, INIT, {"itg": "left"}),
        ({"losses": "itg"}, {}, {"itc": "untrained", "itm": "untrained"}),
        ({"losses": "itg"}, INIT, {"itc": "left", "itm": "left"}),
        ({"itg_joins_at": 1.0, "itm_joins_at": 0.4}, {}, {"itg": "untrained"}),
        ({"losses": "itc,itm", "itm_joins_at": 1}, INIT, {"itm": "left", "itg": "left"}),
    ],
)
def test_a_head_is_trained_by_its_loss_alone(config, frozen, expected):
    assert head_states(Lineage("train-stage1", config, (), frozen)) == ALL | expected


def test_an_import_tells_which_heads_are_not():
    assert head_states(Lineage("import", {"format": "lavis"})) == ALL
    assert heads_to_tell(ALL) == {}
    config = {"format": "transformers"} | heads_to_tell(ALL | {"itm": "left", "itg": "untrained"})
    found = head_states(Lineage("import", config))
    assert found == {"itc": "trained", "itm": "left", "itg": "untrained"}
