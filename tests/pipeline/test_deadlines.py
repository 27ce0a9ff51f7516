"""Nothing waits for longer than the nearer of two deadlines allows."""

import math
import threading
import time

import pytest

from pipeline.deadlines import (
    ShardTime,
    at_most,
    deadline,
    on_time_of,
    postpone,
    remaining_s,
    shard_remaining_s,
)


def test_without_a_deadline_there_is_none():
    assert remaining_s() == shard_remaining_s() == math.inf
    assert at_most(None) is None
    assert at_most(3.0) == 3.0


def test_the_nearer_deadline_counts():
    with on_time_of(ShardTime(100)), deadline(10):
        assert 9 < remaining_s() <= 10
        assert 99 < shard_remaining_s() <= 100
        postpone(200)
        assert 99 < remaining_s() <= 100
        assert at_most(5.0) == 5.0
        assert 99 < at_most(None) <= 100
    with deadline(100), on_time_of(ShardTime(10)):
        assert 9 < remaining_s() <= 10
    assert remaining_s() == math.inf


@pytest.mark.parametrize("seconds", [0, -1])
def test_a_deadline_that_has_passed_leaves_no_time(seconds):
    with deadline(seconds), pytest.raises(TimeoutError):
        at_most(5.0)
    with on_time_of(ShardTime(seconds)), deadline(9), pytest.raises(TimeoutError):
        at_most(5.0)


def test_a_shards_time_is_one_for_all_threads_and_stands_still_while_it_is_told_to():
    shard, seen = ShardTime(10), []

    def look() -> None:
        with on_time_of(shard):
            seen.append(remaining_s())

    with shard.standing_still():
        before = shard.remaining_s()
        time.sleep(0.05)
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert shard.remaining_s() == seen[0] == before
    time.sleep(0.05)
    assert before - 5 < shard.remaining_s() <= before - 0.05


def test_time_goes_on_after_a_fault_in_what_did_not_count():
    shard = ShardTime(10)
    with pytest.raises(KeyError), shard.standing_still():
        raise KeyError
    before = shard.remaining_s()
    time.sleep(0.01)
    assert shard.remaining_s() < before
