"""Steps of a run against closed forms, on round numbers."""

from dataclasses import replace

import pytest

from indexes.kinds import IndexConfig, memory_bytes
from jobs.plan.caching import caching
from jobs.plan.rates import Rates
from jobs.plan.steps import Evaluated, Machines, Run, steps_of
from jobs.plan.table import Prices, costs
from model.costs import EmbedCost, EncoderCost, MatchCost, TrainCost
from model.qformer import QFormerConfig
from pipeline.errors import ConfigError

RUN = Run(
    pairs=1000,
    rows=2000,
    captions_per_picture=2,
    views=1,
    dtype="fp16",
    stage1_pictures=4000,
    stage2_pictures=2000,
    qformer=QFormerConfig(vision_width=50, num_queries=8, embed_dim=16),
    encoder=EncoderCost(num_tokens=10, width=50, parameters=7, flops=int(1e9)),
    stage1=TrainCost(parameters=100, frozen_parameters=0, flops=3e9, flops_of_ranks=4e9),
    stage2=TrainCost(parameters=50, frozen_parameters=9, flops=8e9, flops_of_ranks=8e9),
    embed=EmbedCost(picture=2e9, caption=1e9),
    match=MatchCost(picture=1e9, pair=5e8),
    evaluated=Evaluated(pictures=10, captions=50, rerank=20),
)
RATES = Rates(
    core_gflops=10,
    gpu_tflops=0.1,
    encoder_share=0.5,
    train_share=0.25,
    ingest_per_s=10,
    curate_per_s=50,
    decode_per_s=25,
    picture_bytes=20_000,
)
GPUS = Machines(gpus=2, cores=4, rates=RATES)
CORES = Machines(gpus=0, cores=4, rates=RATES)


def steps(machines: Machines, run: Run = RUN):
    return {step.name: step for step in steps_of(run, machines)}


def test_bytes_of_each_step():
    tokens, vectors = 10 * 50 * 2, 8 * 16 * 4
    found = {s.name: (s.read_bytes, s.write_bytes, s.stored_bytes) for s in steps_of(RUN, GPUS)}
    embedded = 1000 * (vectors + 2 * 16 * 4)
    assert found == {
        "ingest": (0, 20e6, 20e6),
        "curate": (40e6, 20e6, 20e6),
        "features": (20e6, 1000 * tokens, 1000 * tokens),
        "train-stage1": (4000 * tokens, 0, 12 * 100),
        "train-stage2": (2000 * tokens, 0, 12 * 50),
        "embed": (1000 * tokens, embedded, embedded),
        "evaluate": (10 * (vectors + tokens), 0, 0),
        "index": (embedded, embedded, embedded),
    }


def test_an_index_of_many_pictures_takes_memory_and_arithmetic():
    run = replace(RUN, pairs=250_000, captions_per_picture=0.1)
    found, index = steps(CORES, run)["index"], run.index
    # Two million vectors of 16 values in 4,096 lists; 25,000 captions in a graph.
    assert (index.kind, index.shards) == ("ivfpq", 1)
    assert index.vector_bytes == found.read_bytes == (2_000_000 + 25_000) * 16 * 4
    graph = memory_bytes("hnsw", 25_000, 16)
    assert index.memory_bytes == 4096 * 16 * 4 + 2_000_000 * (2 + 8) + graph
    assert found.write_bytes == index.vector_bytes + index.memory_bytes
    assert index.flops == 2 * 16 * 4096 * (2_000_000 + 10 * 64 * 4096)
    assert found.busy_s == pytest.approx(index.flops / 4e10)
    halves = replace(run, indexed=IndexConfig(shard_pictures=125_000)).index
    assert halves.shards == 2
    assert halves.vector_bytes == index.vector_bytes
    few = replace(run, indexed=IndexConfig(vectors_per_picture=1)).index
    assert few.kind == "hnsw"
    assert few.vector_bytes == index.vector_bytes
    on_disk = replace(run, indexed=IndexConfig(memory_gib=0.01)).index
    assert on_disk.kind == "ivf"
    assert on_disk.approximate_bytes > 2_000_000 * 24


@pytest.mark.parametrize(
    ("dtype", "value", "scale"), [("fp16", 2, 0), ("bf16", 2, 0), ("int8", 1, 4)]
)
def test_cached_bytes_of_each_type_and_of_views(dtype, value, scale):
    run = replace(RUN, dtype=dtype, views=3)
    assert run.token_bytes == 10 * (50 * value + scale)
    found = steps(GPUS, run)
    assert found["features"].write_bytes == 3 * 1000 * run.token_bytes
    assert found["features"].device_s == 3 * steps(GPUS)["features"].device_s
    assert found["train-stage1"].read_bytes == 4000 * run.token_bytes


def test_seconds_on_gpus_and_on_cores():
    found = steps(GPUS)
    assert found["ingest"].busy_s == 2000 / (4 * 10)
    assert found["curate"].busy_s == 1000 / (4 * 50)
    # Two GPUs reach 0.1 TFLOP/s of encoding together, and half of that in training.
    assert found["features"].device_s == pytest.approx(1000 * 1e9 / 1e11)
    assert found["features"].core_s == 1000 / (4 * 25)
    assert found["train-stage1"].busy_s == pytest.approx(4000 * 4e9 / 5e10)
    assert found["train-stage2"].busy_s == pytest.approx(2000 * 8e9 / 5e10)
    assert found["embed"].busy_s == pytest.approx(1000 * (2e9 + 2 * 1e9) / 5e10)
    # On cores decoding is work of the same ones, and one rank trains alone.
    found = steps(CORES)
    assert found["features"].busy_s == pytest.approx(1000 * 1e9 / (4e10 * 0.5) + 10)
    assert found["train-stage1"].busy_s == pytest.approx(4000 * 3e9 / (4e10 * 0.25))


def test_the_slowest_of_computing_reading_and_writing_decides():
    found = steps(GPUS)["train-stage1"]
    assert (found.waits_for, found.hours) == ("compute", pytest.approx(320 / 3600))
    assert found.gb_per_s == pytest.approx(4e6 / 1e9 / 320)
    slow = replace(GPUS, rates=replace(RATES, read_gb_per_s=1e-6, write_gb_per_s=1e-5))
    found = steps(slow)
    assert (found["train-stage1"].waits_for, found["train-stage1"].hours) == (
        "read",
        pytest.approx(4000 / 3600),
    )
    assert found["ingest"].waits_for == "write"
    assert found["index"].gb_per_s is None
    assert steps(GPUS)["index"].hours == 0
    many = steps(replace(GPUS, rates=replace(RATES, decode_per_s=1)))
    assert many["features"].waits_for == "cores"


def test_features_that_fit_in_memory_are_read_from_storage_once():
    rates = replace(RATES, read_gb_per_s=1e-6, memory_gb_per_s=1e-3, ram_gb=1e-3)
    found = steps(replace(GPUS, rates=rates))["train-stage1"]
    assert found.read_s == pytest.approx(1e6 / 1e3 + 3e6 / 1e6)
    found = steps(replace(GPUS, rates=replace(rates, ram_gb=0.9e-3)))["train-stage1"]
    assert found.read_s == pytest.approx(4e6 / 1e3)


def test_rates_that_are_missing_are_named():
    fewer = replace(RATES, gpu_tflops=None, decode_per_s=None)
    with pytest.raises(ConfigError, match=r"give --gpu-tflops, --decode-per-s, or measure"):
        replace(GPUS, rates=fewer)
    with pytest.raises(ConfigError, match=r"give --core-gflops, or measure"):
        replace(CORES, rates=replace(RATES, core_gflops=None))
    assert steps(replace(CORES, rates=replace(RATES, gpu_tflops=None)))


def test_caching_against_recomputing():
    found = caching(RUN, GPUS, steps(GPUS))
    encode, train = 0.01, 320 + 320  # seconds a picture, seconds of both stages
    assert found.encoder_s == pytest.approx(encode)
    assert found.passes == 6
    assert found.cached_hours == pytest.approx((10 + train) / 3600)
    assert found.recomputed_hours == pytest.approx((train + 6000 * encode) / 3600)
    # A pass over 1,000 pictures saves 10 s, and making the cache took 10 s.
    assert found.passes_to_pay == pytest.approx(1)
    assert found.gb_per_s_never_to_wait == pytest.approx(6e6 / 1e9 / train)
    assert found.gb_per_s_to_pay == pytest.approx(6e6 / 1e9 / (train + 60))


def test_a_cache_pays_late_with_views_and_never_from_slow_storage():
    found = caching(replace(RUN, views=3), GPUS, steps(GPUS, replace(RUN, views=3)))
    assert found.passes_to_pay == pytest.approx(3)
    edge = caching(RUN, GPUS, steps(GPUS)).gb_per_s_to_pay
    for factor, pays in ((1.001, True), (0.999, False)):
        rates = replace(RATES, read_gb_per_s=edge * factor)
        # Both stages take equally long a picture, so that the edge is the same for both.
        run = replace(RUN, stage1=replace(RUN.stage1, flops_of_ranks=8e9))
        machines = replace(GPUS, rates=rates)
        edge_of_run = caching(run, machines, steps(machines, run)).gb_per_s_to_pay
        machines = replace(GPUS, rates=replace(RATES, read_gb_per_s=edge_of_run * factor))
        weighed = caching(run, machines, steps(machines, run))
        assert (weighed.passes_to_pay is not None) == pays


def test_costs():
    found = list(steps_of(RUN, GPUS))
    weighed = caching(RUN, GPUS, steps(GPUS))
    prices = Prices(usd_per_gpu_hour=3.0, usd_per_tb_month=20.0)
    usd = costs(prices, found, weighed, gpus=2, cores=4)
    assert usd.steps["train-stage1"] == pytest.approx(320 / 3600 * 2 * 3)
    assert usd.steps["ingest"] is None
    assert usd.keeping_a_month == pytest.approx(sum(s.stored_bytes for s in found) / 1e12 * 20)
    assert usd.keeping_the_cache == pytest.approx(1e6 / 1e12 * 20 * weighed.cached_hours / 730)
    assert usd.caching_saves == pytest.approx(50 / 3600 * 2 * 3)
    cores = costs(Prices(usd_per_core_hour=0.5), found, weighed, gpus=2, cores=4)
    assert cores.steps["ingest"] == pytest.approx(50 / 3600 * 4 * 0.5)
    assert cores.steps["train-stage1"] is None
    with pytest.raises(ConfigError, match=r"usd_per_gpu_hour: -1.0 is negative"):
        Prices(usd_per_gpu_hour=-1.0)


def test_an_evaluation_takes_products_on_cores_and_itm_on_devices():
    """Each picture has its 20 best captions, each caption all 10 pictures, which are fewer."""
    pairs = 10 * 20 + 50 * 10
    assert RUN.evaluated.pairs == pairs
    products = 2 * 10 * 50 * 8 * 16
    on_cores = 2 * products / (4 * 10e9 / 2)
    found = steps(CORES)["evaluate"]
    assert found.core_s == pytest.approx(on_cores)
    assert found.device_s == pytest.approx((10 * 1e9 + pairs * 5e8) / (4 * 10e9 * 0.25))
    assert found.busy_s == found.core_s + found.device_s
    alone = steps(CORES, replace(RUN, evaluated=replace(RUN.evaluated, rerank=0)))["evaluate"]
    assert (alone.device_s, alone.core_s) == (0, pytest.approx(on_cores))
    assert alone.read_bytes == 10 * 8 * 16 * 4
    no_cores = replace(RATES, core_gflops=None)
    assert steps(replace(GPUS, rates=no_cores))["evaluate"].core_s == 0
