"""Which objectives a training has, and when they join."""

import math

import pytest

from model.objectives import ObjectivesConfig
from pipeline.errors import ConfigError


@pytest.mark.parametrize(
    ("joins", "until", "expected"),
    [
        (0, 0, {0: 1.0, 50: 1.0, 99: 1.0}),
        (0, 0.5, {0: 0.0, 25: 0.5, 49: 0.98, 50: 1.0, 99: 1.0}),
        (0.2, 0.6, {0: None, 19: None, 20: 0.0, 30: 0.25, 60: 1.0, 99: 1.0}),
        (0.2, 0, {19: None, 20: 1.0, 99: 1.0}),
        (0.2, 0.2, {19: None, 20: 1.0}),
        (1, 1, {0: None, 99: None}),
        (0, 2, {0: 0.0, 50: 0.25, 99: 0.495}),
    ],
)
def test_itm_joins_and_its_negatives_harden(joins, until, expected):
    objectives = ObjectivesConfig(itm_joins_at=joins, itm_hardens_until=until)
    for step, hardness in expected.items():
        assert objectives.itm_hardness(step, 100) == pytest.approx(hardness), step


def test_by_default_long_trainings_have_the_papers_schedule_and_short_ones_begin_with_itc():
    default = ObjectivesConfig()
    assert [default.itm_hardness(step, 250_000) for step in (0, 249_999)] == [1.0, 1.0]
    short = [default.itm_hardness(step, 1000) for step in (0, 399, 400, 700, 999)]
    assert short == pytest.approx([None, None, 0.0, 0.5, 599 / 600])
    assert default.has_itg(0, 1000)
    assert ObjectivesConfig(itm_joins_at=0.0).itm_hardness(500, 1000) == pytest.approx(0.5)
    paper = ObjectivesConfig(itm_joins_at=0.0, itm_hardens_until=0.0)
    assert default.resolved(10_000) == paper == paper.resolved(100)


@pytest.mark.parametrize("name", ["label_smoothing", "itm_joins_at", "itg_joins_at"])
@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_a_share_that_is_none_is_named(name, value):
    with pytest.raises(ConfigError, match=rf"{name}: {value} is not in \[0, 1\]"):
        ObjectivesConfig(**{name: value})


@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan])
def test_negatives_cannot_harden_before_the_start_or_never(value):
    with pytest.raises(ConfigError, match=rf"itm_hardens_until: {value} is not in \[0, inf\)"):
        ObjectivesConfig(itm_hardens_until=value)


# Which of them


def test_by_default_there_are_all_three():
    assert ObjectivesConfig().chosen == {"itc", "itm", "itg"}


@pytest.mark.parametrize("losses", ["itm,itc", "itc,itm"])
def test_their_order_is_no_matter(losses):
    assert ObjectivesConfig(losses=losses).resolved(10).losses == "itc,itm"


@pytest.mark.parametrize("losses", ["", "itc,", "itc itm", "itc,itd", "itg,itg"])
def test_what_is_no_list_of_them_is_named(losses):
    with pytest.raises(ConfigError, match=f"losses: '{losses}' is no list of itc, itm, itg"):
        ObjectivesConfig(losses=losses)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"losses": "itg", "itg_joins_at": 0.1}, r"\(itg_joins_at=0\.1\)"),
        ({"losses": "itm", "itm_joins_at": 0.4}, r"\(itm_joins_at=0\.4\)"),
        (
            {"losses": "itm,itg", "itm_joins_at": 0.4, "itg_joins_at": 0.1},
            r"\(itm_joins_at=0\.4 and itg_joins_at=0\.1\)",
        ),
    ],
)
def test_one_of_them_is_there_from_the_first_step(options, told):
    with pytest.raises(ConfigError, match=rf"none is there at the first step {told}"):
        ObjectivesConfig(**options)
    if "itg" in options["losses"]:
        ObjectivesConfig(**options | {"itg_joins_at": 0.0})


def test_what_is_left_out_never_joins():
    for step in (0, 99):
        assert ObjectivesConfig(losses="itc,itg").itm_hardness(step, 100) is None
        assert not ObjectivesConfig(losses="itc,itm").has_itg(step, 100)
    both = ObjectivesConfig(losses="itc,itm")
    assert both.joined(itm=True, itg=True) == {"itc", "itm"}
    assert both.joined(itm=False, itg=True) == {"itc"}


def test_without_itc_negatives_are_chances_and_itm_waits_for_nobody():
    alone = ObjectivesConfig(losses="itm", itm_hardens_until=0.0)
    assert [alone.itm_hardness(step, 100) for step in (0, 99)] == [0.0, 0.0]
    late = ObjectivesConfig(losses="itm,itg", itm_joins_at=0.5)
    assert [late.itm_hardness(step, 100) for step in (49, 50)] == [None, 0.0]


def test_from_a_checkpoint_the_schedule_is_the_papers_unless_it_is_said():
    short = ObjectivesConfig().resolved(1000, trained=True)
    assert (short.itm_joins_at, short.itm_hardens_until) == (0.0, 0.0)
    assert short.itm_hardness(0, 1000) == 1.0
    said = ObjectivesConfig(itm_hardens_until=1.0).resolved(1000, trained=True)
    assert said.itm_hardness(500, 1000) == 0.5
