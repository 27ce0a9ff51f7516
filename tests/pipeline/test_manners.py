"""Servers are asked as they wish to be."""

import time
from email.utils import formatdate

import pytest
from urllib3 import HTTPHeaderDict, HTTPResponse

from pipeline.manners import opts_out, retry_after_s


def answer(*headers: tuple[str, str]) -> HTTPResponse:
    return HTTPResponse(headers=HTTPHeaderDict(headers))


@pytest.mark.parametrize(
    ("tags", "out"),
    [
        (["noai"], True),
        (["NoImageAI"], True),
        (["nofollow, noindex"], True),
        (["all", "noimageindex"], True),
        (["viaduct: nofollow, noai"], True),
        (["otherbot: nofollow, viaduct: noai"], True),
        (["otherbot: noai, noindex"], False),
        (["unavailable_after: 25 Jun 2010 15:00:00 PST"], False),
        (["max-snippet:20, nosnippet, noai-not"], False),
        ([""], False),
        ([], False),
    ],
)
def test_directives_count_if_they_are_for_all_or_for_us(tags, out):
    assert opts_out(answer(*(("X-Robots-Tag", tag) for tag in tags))) == out


def test_a_reservation_is_an_opt_out():
    assert opts_out(answer(("tdm-reservation", "1")))
    assert not opts_out(answer(("tdm-reservation", "0")))


@pytest.mark.parametrize(
    ("value", "seconds"), [("7", 7), (" 0 ", 0), ("soon", None), ("-3", None), ("9" * 5000, None)]
)
def test_how_long_to_wait_is_read_where_it_can_be(value, seconds):
    assert retry_after_s(answer(("Retry-After", value))) == seconds


def test_a_date_to_wait_for_is_seconds_from_now():
    after = retry_after_s(answer(("Retry-After", formatdate(time.time() + 100, usegmt=True))))
    assert 90 < after <= 100
    assert retry_after_s(answer()) is None
