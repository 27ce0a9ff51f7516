"""In = kept + dropped by reason, or it is no account."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.accounting import Account
from pipeline.errors import DatasetError

steady = settings(max_examples=100, deadline=None, derandomize=True)
OUTCOMES = st.lists(st.sampled_from(["kept", "duplicate", "failed:dns", "failed:tls"]), max_size=20)


@steady
@given(OUTCOMES)
def test_outcomes_are_counted_as_a_loop_counts_them(outcomes):
    account = Account.of(iter(outcomes))
    assert account.num_in == len(outcomes)
    assert account.num_kept == outcomes.count("kept")
    reasons = sorted(set(outcomes) - {"kept"})
    assert list(account.dropped.items()) == [(reason, outcomes.count(reason)) for reason in reasons]


def test_what_counts_as_kept_can_be_said():
    assert Account.of(["a", "b", "a"], kept="a") == Account(3, 2, {"b": 1})


@pytest.mark.parametrize(
    ("num_in", "num_kept", "dropped"),
    [(3, 1, {"a": 1}), (1, 2, {}), (0, 0, {"a": 1}), (1, 2, {"a": -1}), (-1, -1, {}), (2, 1, {})],
)
def test_an_account_that_does_not_add_up_is_refused(num_in, num_kept, dropped):
    with pytest.raises(DatasetError, match=f"in={num_in} kept={num_kept}"):
        Account(num_in, num_kept, dropped)


@steady
@given(st.lists(OUTCOMES, max_size=5))
def test_the_total_of_parts_is_the_account_of_the_whole(parts):
    whole = [outcome for part in parts for outcome in part]
    total = Account.total(Account.of(part) for part in parts)
    assert total == Account.of(whole)
    assert list(total.dropped) == sorted(total.dropped)


def test_a_total_names_no_reason_that_dropped_nothing():
    assert Account.total([Account(1, 1, {"a": 0}), Account(1, 0, {"b": 1})]).dropped == {"b": 1}


def test_all_kept_and_all_dropped():
    assert Account.all_kept(3) == Account(3, 3)
    assert Account.all_dropped({"a": 2, "b": 1}) == Account(3, 0, {"a": 2, "b": 1})
    assert Account.all_dropped({}) == Account(0, 0)


@steady
@given(OUTCOMES)
def test_an_account_comes_back_from_json(outcomes):
    account = Account.of(outcomes)
    assert Account.from_json(json.loads(json.dumps(account.to_json()))) == account


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ({"kept": 1, "dropped": {}}, KeyError),
        ({"in": 1, "kept": 1}, KeyError),
        ({"in": None, "kept": 1, "dropped": {}}, TypeError),
        ({"in": 1, "kept": 1, "dropped": 0}, TypeError),
        ([], TypeError),
        ({"in": 2, "kept": 1, "dropped": {}}, DatasetError),
    ],
)
def test_json_that_is_no_account_is_refused(value, error):
    with pytest.raises(error):
        Account.from_json(value)
