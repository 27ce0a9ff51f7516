"""Servers are asked as they wish to be."""

import threading
import time
from email.utils import formatdate

import pytest
from urllib3 import HTTPHeaderDict, HTTPResponse

from pipeline.manners import Turns, opts_out, retry_after_s


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


def test_no_host_is_asked_by_more_threads_than_allowed():
    turns, lock = Turns(3), threading.Lock()
    now, most = {"a": 0, "b": 0}, {"a": 0, "b": 0}

    def ask(host: str) -> None:
        for _ in range(5):
            with turns.turn(host):
                with lock:
                    now[host] += 1
                    most[host] = max(most[host], now[host])
                time.sleep(0.005)
                with lock:
                    now[host] -= 1

    threads = [threading.Thread(target=ask, args=(host,)) for host in "ab" for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == {"a": 3, "b": 3}
    assert not turns._asking  # a hundred million hosts would be remembered otherwise


def test_a_fault_gives_its_turn_back_and_a_wait_is_told():
    turns = Turns(1)
    with pytest.raises(ValueError, match="fault"), turns.turn("a"):
        raise ValueError("fault")
    with turns.turn("a") as waited_s, turns.turn("b"):
        assert waited_s < 1
    waits = []

    def wait() -> None:
        with turns.turn("a") as waited_s:
            waits.append(waited_s)

    with turns.turn("a"):
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.1)
        assert not waits
    thread.join()
    assert 0.05 < waits[0] < 10
