"""What each step of a run computes, reads and writes, and how long that takes."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from indexes.kinds import IndexConfig
from jobs.plan.indexing import IndexCost, index_cost
from jobs.plan.rates import GB, Rates
from model.costs import EmbedCost, EncoderCost, MatchCost, TrainCost
from model.qformer import QFormerConfig
from pipeline.errors import ConfigError
from pipeline.schemas import features_schema

_FLOAT_BYTES = 4
_TRAINED_BYTES = 3 * _FLOAT_BYTES
"""Of a trained parameter in a checkpoint: itself and AdamW's two means."""

_NEEDED = (
    *("encoder_share", "train_share"),
    *("ingest_per_s", "curate_per_s", "decode_per_s", "picture_bytes"),
)


@dataclass(frozen=True, kw_only=True)
class Machines:
    """What computes; without GPUs, the cores do.

    Raises:
        ConfigError: a rate without which there is no plan is unknown; all such are named.
    """

    gpus: int
    cores: int
    rates: Rates

    def __post_init__(self) -> None:
        names = "gpu_tflops" if self.gpus else "core_gflops", *_NEEDED
        if missing := [name for name in names if getattr(self.rates, name) is None]:
            flags = ", ".join("--" + name.replace("_", "-") for name in missing)
            raise ConfigError(
                f"unknown rates: give {flags}, or measure with viaduct plan --calibrate"
            )

    def device_s(self, flops: float, share: str) -> float:
        """Seconds of all devices for so many operations.

        Args:
            flops: of all.
            share: the name of the rate that says what share of matrix products' rate they reach.
        """
        if self.gpus:
            peak = self.gpus * self.rates.needed("gpu_tflops") * 1e12
        else:
            peak = self.cores * self.rates.needed("core_gflops") * 1e9
        return flops / (peak * self.rates.needed(share))

    def core_s(self, pictures: float, rate: str) -> float:
        """Seconds of all cores for so many pictures, at the rate of this name."""
        return pictures / (self.cores * self.rates.needed(rate))

    def product_s(self, flops: float) -> float:
        """Seconds of all cores for so many operations of matrix products; 0 if unknown."""
        rate = self.rates.core_gflops
        return flops / (self.cores * rate * 1e9) if rate else 0.0

    def busy_s(self, device_s: float, core_s: float) -> float:
        """Cores work beside GPUs; where they are the devices too, one comes after the other."""
        return max(device_s, core_s) if self.gpus else device_s + core_s

    def read_s(self, num_bytes: float) -> float:
        """Seconds of reading from storage; 0 where its rate is unknown."""
        rate = self.rates.read_gb_per_s
        return num_bytes / (rate * GB) if rate else 0.0

    def write_s(self, num_bytes: float) -> float:
        """Seconds of writing; 0 where its rate is unknown."""
        rate = self.rates.write_gb_per_s
        return num_bytes / (rate * GB) if rate else 0.0

    def reread_s(self, num_bytes: float, size_bytes: float) -> float:
        """Seconds of reading so many bytes out of a dataset, again and again.

        Args:
            num_bytes: in all.
            size_bytes: of the dataset; where it fits in memory, the rest comes from there.
        """
        copy = self.rates.memory_gb_per_s
        fits = size_bytes <= (self.rates.ram_gb or 0) * GB
        stored = min(num_bytes, size_bytes) if fits else num_bytes
        return self.read_s(stored) + ((num_bytes - stored) / (copy * GB) if copy else 0.0)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command of a run."""

    name: str
    pictures: float
    """That it looks at, again and again in training."""
    device_s: float
    """Seconds of computing on GPUs, or where there are none on the cores."""
    core_s: float
    """Seconds of decoding and the like on the cores."""
    busy_s: float
    """Seconds of both, as they go beside or after one another."""
    read_bytes: float
    read_s: float
    write_bytes: float
    write_s: float
    stored_bytes: float
    """That are there in the end."""

    @property
    def hours(self) -> float:
        """Computing, reading and writing go on beside each other; the slowest decides."""
        return max(self.busy_s, self.read_s, self.write_s) / 3600

    @property
    def waits_for(self) -> str:
        """What decides: `compute`, `cores` (decoding and the like), `read` or `write`."""
        times = {"compute": self.device_s, "cores": self.core_s}
        times |= {"read": self.read_s, "write": self.write_s}
        if max(self.read_s, self.write_s) <= self.busy_s:
            del times["read"], times["write"]
        return max(times, key=lambda name: times[name])

    @property
    def gb_per_s(self) -> float | None:
        """That storage has to move for nothing to wait for it; None where nothing is computed."""
        return (self.read_bytes + self.write_bytes) / GB / self.busy_s if self.busy_s else None


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What is evaluated on."""

    pictures: float
    captions: float
    """Of all of them."""
    rerank: float
    """Candidates of each query that ITM puts in order."""

    @property
    def pairs(self) -> float:
        """Pairs that ITM sees, at most: those of both directions may be the same."""
        queries = self.pictures * min(self.rerank, self.captions)
        return queries + self.captions * min(self.rerank, self.pictures)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run, in the numbers that decide what it costs."""

    pairs: float
    """N, pictures of `pairs`."""
    rows: float
    """Rows of the source."""
    captions_per_picture: float
    views: int
    dtype: str
    stage1_pictures: float
    """Steps times batch size."""
    stage2_pictures: float
    qformer: QFormerConfig
    encoder: EncoderCost
    stage1: TrainCost
    stage2: TrainCost
    embed: EmbedCost
    match: MatchCost
    evaluated: Evaluated
    indexed: IndexConfig = field(default_factory=IndexConfig)

    @property
    def token_bytes(self) -> int:
        """Image tokens of one picture, as cached."""
        schema = features_schema(self.encoder.num_tokens, self.encoder.width, self.dtype)
        tensors = (field.type for field in schema if field.name != "uid")
        return sum(math.prod(its.shape) * its.value_type.bit_width // 8 for its in tensors)

    @property
    def features_bytes(self) -> float:
        """All views of all pictures."""
        return self.views * self.pairs * self.token_bytes

    @property
    def index(self) -> IndexCost:
        size = self.qformer
        captions = self.captions_per_picture * self.pairs
        return index_cost(self.pairs, captions, size.num_queries, size.embed_dim, self.indexed)

    def train_flops(self, cost: TrainCost, machines: Machines) -> float:
        """Of a pair in training: a rank on each GPU, one on CPUs."""
        return cost.flops_of_ranks if machines.gpus > 1 else cost.flops


def steps_of(run: Run, machines: Machines) -> Iterator[Step]:
    """Each step of a run, in order."""
    pictures = run.pairs * machines.rates.needed("picture_bytes")
    encoded = run.views * run.pairs
    index = run.index

    def step(
        name: str,
        num: float,
        *,
        device_s: float = 0.0,
        core_s: float = 0.0,
        read: float = 0.0,
        write: float = 0.0,
        read_s: float | None = None,
        stored: float | None = None,
    ) -> Step:
        return Step(
            name=name,
            pictures=num,
            device_s=device_s,
            core_s=core_s,
            busy_s=machines.busy_s(device_s, core_s),
            read_bytes=read,
            read_s=machines.read_s(read) if read_s is None else read_s,
            write_bytes=write,
            write_s=machines.write_s(write),
            stored_bytes=write if stored is None else stored,
        )

    def train(name: str, num: float, cost: TrainCost) -> Step:
        read = num * run.token_bytes
        return step(
            name,
            num,
            device_s=machines.device_s(num * run.train_flops(cost, machines), "train_share"),
            read=read,
            read_s=machines.reread_s(read, run.features_bytes),
            stored=cost.parameters * _TRAINED_BYTES,
        )

    yield step("ingest", run.rows, core_s=machines.core_s(run.rows, "ingest_per_s"), write=pictures)
    yield step(  # hashes first, then the output
        "curate",
        run.pairs,
        core_s=machines.core_s(run.pairs, "curate_per_s"),
        read=2 * pictures,
        write=pictures,
    )
    yield step(
        "features",
        encoded,
        device_s=machines.device_s(encoded * run.encoder.flops, "encoder_share"),
        core_s=machines.core_s(encoded, "decode_per_s"),
        read=run.views * pictures,
        write=run.features_bytes,
    )
    yield train("train-stage1", run.stage1_pictures, run.stage1)
    yield train("train-stage2", run.stage2_pictures, run.stage2)
    flops = run.embed.picture + run.captions_per_picture * run.embed.caption
    yield step(
        "embed",
        run.pairs,
        device_s=machines.device_s(run.pairs * flops, "train_share"),
        read=run.pairs * run.token_bytes,
        write=index.vector_bytes,
    )
    yield _evaluation(run, machines, step)
    yield step(
        "index",
        run.pairs,
        core_s=machines.product_s(index.flops),
        read=index.vector_bytes,
        write=index.stored_bytes,
    )


def _evaluation(run: Run, machines: Machines, step: Callable[..., Step]) -> Step:
    """Evaluation: ITC on the cores, in float64 and for each direction, then ITM."""
    its = run.evaluated
    products = its.pictures * its.captions * run.qformer.num_queries * run.qformer.embed_dim
    seen = its.pictures * run.match.picture if its.rerank else 0.0
    vectors = its.pictures * run.qformer.num_queries * run.qformer.embed_dim * _FLOAT_BYTES
    return step(
        "evaluate",
        its.pictures,
        device_s=machines.device_s(seen + its.pairs * run.match.pair, "train_share"),
        # A product and a sum each, both directions, at half the rate of float32.
        core_s=machines.product_s(2 * 2 * 2 * products),
        read=vectors + (its.pictures * run.token_bytes if its.rerank else 0.0),
    )
