"""Parts of an evaluation come back in their order, or the failure says what and why."""

import pytest

from jobs.evaluate import workers
from jobs.evaluate.workers import Workers
from jobs.shards import Outcome, Task, WorkersConfig
from pipeline.errors import DatasetError, ViaductError

TASKS = [Task(4, 10), Task(0, 20), Task(7, 5)]


@pytest.fixture
def doubles():
    """A local name, which travels to other processes by value."""

    def make():
        return lambda task: 2 * task.number

    return make


def test_this_process_does_one_part_after_the_other(doubles):
    assert Workers(None).all(doubles, TASKS, "double", "parts") == [8, 0, 14]
    assert Workers(None).all(doubles, [], "double", "parts") == []


def test_parts_of_workers_come_in_the_order_of_tasks(doubles, ray_session):
    assert Workers(WorkersConfig(workers=1)).all(doubles, TASKS, "double", "parts") == [8, 0, 14]


@pytest.mark.parametrize(("damaged", "kind"), [(True, DatasetError), (False, ViaductError)])
def test_parts_that_failed_are_counted_with_their_reasons(monkeypatch, doubles, damaged, kind):
    reasons = {4: "00004.arrow: is missing", 7: "00004.arrow: is missing"}
    ended = Outcome(done={0: 0}, set_aside=reasons, damaged=damaged)
    monkeypatch.setattr(workers, "run_shards", lambda *arguments: ended)
    with pytest.raises(kind, match=r"double: 2 of 3 parts failed: 00004\.arrow: is missing$"):
        Workers(WorkersConfig()).all(doubles, TASKS, "double", "parts")
