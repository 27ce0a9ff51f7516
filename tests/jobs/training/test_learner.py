"""The parts of a batch that ranks take."""

import numpy as np

from jobs.training import learner
from pipeline.order import Order


def test_ranks_take_equal_parts_of_a_batch(monkeypatch):
    order = Order(40, 12, seed=5)
    monkeypatch.setattr(learner.ranks, "num_ranks", lambda: 3)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(learner.ranks, "rank", lambda rank=rank: rank)
        parts.append(learner.mine(order.batch(4)))
    assert [len(part) for part in parts] == [4, 4, 4]
    np.testing.assert_array_equal(np.concatenate(parts), order.batch(4))
