"""What a training reads: one dataset or several, in the order that its lineage tells."""

from types import SimpleNamespace

import numpy as np
import pytest

from jobs import cli
from jobs.cli import main
from jobs.train_stage1 import Stage1Learner
from jobs.training import TrainingData, learner
from model.checkpoint import Checkpoint
from model.start import start_tokenizer
from pipeline.dataset import Dataset
from pipeline.mix import MixedOrder
from pipeline.order import Order, OrderConfig

pytestmark = pytest.mark.usefixtures("ray_session")

LANES = ("--shuffle", "lanes", "--num-lanes", 4, "--window", 8)


def twice(data) -> list[object]:
    """The same dataset, as if it were two."""
    paths = ("--features", *[data / "features"] * 2, "--captions", *[data / "pairs"] * 2)
    return [*paths, "--mix", 0.75, 0.25]


def opened(data, count: int = 1, mix=(), order=None) -> TrainingData:
    features, captions = ([str(data / name)] * count for name in ("features", "pairs"))
    return TrainingData.open(features, captions, mix, order or OrderConfig())


def test_a_mix_by_lanes_is_trained_on_and_told(data, tmp_path, stage1_command, rank_here, metrics):
    command = [*stage1_command(tmp_path / "out"), *twice(data), *LANES]
    with rank_here():
        assert main([str(word) for word in command]) == 0
    lineage = Checkpoint.open(str(tmp_path / "out")).lineage
    features, pairs = (Dataset.open(str(data / name)) for name in ("features", "pairs"))
    assert lineage.parents == (features.as_parent, pairs.as_parent) * 2
    told = {name: lineage.config[name] for name in ("shuffle", "num_lanes", "window", "mix")}
    assert told == {"shuffle": "lanes", "num_lanes": 4, "window": 8, "mix": [0.75, 0.25]}
    assert len([line for line in metrics(tmp_path / "out") if line["split"] == "train"]) == 12


def test_by_default_local_features_are_shuffled_whole(data, unbroken):
    config = Checkpoint.open(str(unbroken)).lineage.config
    assert config["shuffle"] == "full"
    assert not {"num_lanes", "window", "mix"} & config.keys()
    one = opened(data)
    assert isinstance(one.order_of(one.pairs(0), 8, 0), Order)


def test_several_are_shared_out_by_weight_or_by_their_pairs(data):
    weighed = opened(data, 2, (3.0, 1.0))
    pairs = weighed.pairs(0)
    order = weighed.order_of(pairs, 8, 0)
    assert isinstance(order, MixedOrder)
    assert [one.batch_size for one in order.orders] == [6, 2]
    assert [one.batch_size for one in opened(data, 2).order_of(pairs, 8, 0).orders] == [4, 4]
    assert len(pairs) == 2 * len(opened(data).pairs(0))


def test_a_rank_reads_its_part_of_each_batch_in_its_epochs(
    data, tmp_path, stage1_command, monkeypatch
):
    """On 1, 2 and 4 ranks, the rows of each batch with their captions and epochs are the same."""
    command = [str(word) for word in [*stage1_command(tmp_path), *twice(data), *LANES]]
    job = cli.parse(command[0], command[1:])
    read = TrainingData.open(job.features, job.captions, job.mix, job.order)
    cpu = SimpleNamespace(type="cpu")
    made = Stage1Learner(job, read, start_tokenizer(job.start, []).to_json(), cpu)
    asked = []
    monkeypatch.setattr(made, "_encoded", lambda batch: batch)
    monkeypatch.setattr(made._train.pairs, "batch", lambda *its: asked.append(np.stack(its)))
    for num_ranks in (1, 2, 4):
        monkeypatch.setattr(learner.ranks, "num_ranks", lambda n=num_ranks: n)
        for rank in range(num_ranks):
            monkeypatch.setattr(learner.ranks, "rank", lambda r=rank: r)
            made.batch(9)
    whole, *parts = asked
    np.testing.assert_array_equal(np.concatenate(parts[:2], axis=1), whole)
    np.testing.assert_array_equal(np.concatenate(parts[2:], axis=1), whole)
    order = made._train.order
    assert whole.tolist() == [
        its(9).tolist() for its in (order.batch, order.caption_draw, order.epochs)
    ]
    assert whole[2].max() > 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--mix", 0.5), "mix: 1 of them for 2 features"),
        (("--mix", 1, -1), "mix: 1.0 -1.0: a weight is not positive"),
        (("--captions", "one"), "captions: 1 of them for 2 features"),
        (("--features",), "features: name at least one dataset"),
        (("--num-lanes", 0), "num_lanes: 0 is not positive"),
    ],
)
def test_what_is_no_mix_is_one_line(data, tmp_path, stage1_command, refused, options, told):
    assert told in refused(*stage1_command(tmp_path / "out"), *twice(data), *options)
