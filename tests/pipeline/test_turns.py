"""No host is asked by too many, and a slow one does not stand in the way of others."""

import threading
import time
from collections import Counter
from contextlib import ExitStack

import pytest

from pipeline.deadlines import ShardTime, on_time_of
from pipeline.turns import RowQueue, Turns


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


def test_a_wait_for_a_turn_ends_with_the_shards_time():
    turns, begun = Turns(1), time.monotonic()
    with turns.turn("a"), on_time_of(ShardTime(0.1)):
        with pytest.raises(TimeoutError), turns.turn("a"):
            pass
        assert 0.1 <= time.monotonic() - begun < 5
        with turns.turn("b"):
            pass


def taken(queue: RowQueue, count: int, stack: ExitStack) -> list[int]:
    """Rows that so many threads would get one after the other, none of which is done yet."""
    return [stack.enter_context(queue.next()) for _ in range(count)]


def test_rows_of_one_host_come_in_the_order_of_the_source():
    queue = RowQueue(["a"] * 50, 1)
    for row in range(50):
        with queue.next() as got:
            assert got == row


def test_other_hosts_go_before_a_second_row_of_one():
    queue = RowQueue([*"aaaabbc"], 8)
    with ExitStack() as stack:
        assert taken(queue, 7, stack) == [0, 4, 6, 1, 5, 2, 3]


def test_rows_without_a_host_are_taken_by_all_threads():
    queue = RowQueue(["", "a", "", "", "a", ""], 1)
    with ExitStack() as stack:
        assert taken(queue, 5, stack) == [0, 1, 2, 3, 5]


def test_a_host_that_is_done_with_a_row_is_asked_before_those_that_are_not():
    queue = RowQueue([*"aaabbb"], 2)
    with ExitStack() as slow, ExitStack() as quick:
        assert taken(queue, 1, slow) == [0]
        assert taken(queue, 1, quick) == [3]
        quick.close()
        assert taken(queue, 2, quick) == [4, 1]
        quick.close()
        assert taken(queue, 1, quick) == [5]


def test_threads_get_each_row_once_and_no_host_has_more_than_allowed():
    hosts = [*"aaaaaaaaaabbbbbbcddd"] * 10
    queue, lock, busy, most, rows = RowQueue(hosts, 3), threading.Lock(), Counter(), Counter(), []

    def work() -> None:
        for _ in range(len(hosts) // 10):
            with queue.next() as row:
                with lock:
                    rows.append(row)
                    busy[hosts[row]] += 1
                    most[hosts[row]] = max(most[hosts[row]], busy[hosts[row]])
                time.sleep(0.001)
                with lock:
                    busy[hosts[row]] -= 1

    threads = [threading.Thread(target=work) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(rows) == list(range(len(hosts)))
    assert max(most.values()) == 3
