"""A plan as text."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jobs.plan.caching import Caching
from jobs.plan.rates import Rates
from jobs.plan.steps import Run, Step
from pipeline.errors import ConfigError

_HOURS_A_MONTH = 730


@dataclass(frozen=True, kw_only=True)
class Prices:
    """What things cost, in US dollars; without a price, no cost is shown."""

    usd_per_gpu_hour: float | None = None
    """Of a GPU."""

    usd_per_core_hour: float | None = None
    """Of a CPU core, in steps that use no GPU."""

    usd_per_tb_month: float | None = None
    """Of keeping 1 TB (10^12 bytes) for a month."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and value < 0:
                raise ConfigError(f"{name}: {value} is negative")

    def of_computing(self, step: Step, gpus: int, cores: int) -> float | None:
        """Of a step's hours, or None without a price."""
        if gpus and step.device_s:
            price, num = self.usd_per_gpu_hour, gpus
        else:
            price, num = self.usd_per_core_hour, cores
        return None if price is None else step.hours * num * price

    def of_keeping(self, num_bytes: float, hours: float) -> float | None:
        """Of so many bytes for so long, or None without a price."""
        if self.usd_per_tb_month is None:
            return None
        return num_bytes / 1e12 * hours / _HOURS_A_MONTH * self.usd_per_tb_month


@dataclass(frozen=True, kw_only=True)
class Costs:
    """In US dollars; None without a price."""

    steps: dict[str, float | None]
    """Of computing, by step."""
    keeping_a_month: float | None
    """Of all that is stored in the end."""
    caching_saves: float | None
    """Of computing, by caching."""
    keeping_the_cache: float | None
    """While features are made and trained on."""


def costs(prices: Prices, steps: Sequence[Step], weighed: Caching, gpus: int, cores: int) -> Costs:
    """What a plan costs."""
    price, num = (prices.usd_per_gpu_hour, gpus) if gpus else (prices.usd_per_core_hour, cores)
    saved_hours = weighed.recomputed_hours - weighed.cached_hours
    return Costs(
        steps={step.name: prices.of_computing(step, gpus, cores) for step in steps},
        keeping_a_month=prices.of_keeping(sum(s.stored_bytes for s in steps), _HOURS_A_MONTH),
        caching_saves=None if price is None else saved_hours * num * price,
        keeping_the_cache=prices.of_keeping(weighed.cache_bytes, weighed.cached_hours),
    )


def as_json(
    run: Run, rates: Rates, steps: Sequence[Step], weighed: Caching, usd: Costs
) -> dict[str, Any]:
    """The plan as one JSON object; sizes in bytes, times in hours and seconds."""
    told = [
        asdict(step)
        | {"hours": step.hours, "waits_for": step.waits_for, "gb_per_s": step.gb_per_s}
        | {"usd": usd.steps[step.name]}
        for step in steps
    ]
    return {
        "steps": told,
        "hours": sum(step.hours for step in steps),
        "stored_bytes": sum(step.stored_bytes for step in steps),
        "caching": asdict(weighed),
        "usd": asdict(usd),
        "counted": {
            "encoder": asdict(run.encoder),
            "stage1": asdict(run.stage1),
            "stage2": asdict(run.stage2),
            "embed": asdict(run.embed),
            "match": asdict(run.match),
            "index": asdict(run.index),
            "token_bytes": run.token_bytes,
        },
        "rates": asdict(rates),
    }


def as_text(run: Run, steps: Sequence[Step], weighed: Caching, usd: Costs) -> Iterator[str]:
    """The plan as lines."""
    yield (
        f"encoder: {_count(run.encoder.flops)}FLOP and {_bytes(run.token_bytes)} of image tokens "
        f"a picture ({run.encoder.num_tokens} x {run.encoder.width}, {run.dtype})"
    )
    yield (
        f"stage 1: {_count(run.stage1.flops)}FLOP a pair "
        f"({_count(run.stage1.flops_of_ranks)}FLOP on several ranks), "
        f"{run.stage1.parameters:,} parameters trained"
    )
    yield (
        f"stage 2: {_count(run.stage2.flops)}FLOP a pair, "
        f"{run.stage2.parameters:,} parameters trained before {run.stage2.frozen_parameters:,}"
    )
    yield ""
    shows_usd = any(cost is not None for cost in usd.steps.values())
    head = ["step", "pictures", "reads", "writes", "hours", "waits for", "GB/s needed"]
    rows = [head + ["USD"] * shows_usd]
    for step in steps:
        needed = "-" if step.gb_per_s is None else f"{step.gb_per_s:.3g}"
        sizes = [_bytes(step.read_bytes), _bytes(step.write_bytes)]
        cost = usd.steps[step.name]
        rows.append(
            [step.name, _count(step.pictures).strip(), *sizes]
            + ([f"{step.hours:,.2f}", step.waits_for] if step.hours else ["-", "-"])
            + [needed]
            + ["-" if cost is None else f"{cost:,.0f}"] * shows_usd
        )
    hours = sum(step.hours for step in steps)
    total = ["all", "", "", "", f"{hours:,.2f}", "", ""]
    paid = sum(cost for cost in usd.steps.values() if cost is not None)
    rows.append(total + [f"{paid:,.0f}"] * shows_usd)
    yield from _aligned(rows)
    yield ""
    kept = sum(step.stored_bytes for step in steps)
    month = "" if usd.keeping_a_month is None else f", {usd.keeping_a_month:,.0f} USD a month"
    index = run.index
    memory = (
        f"{_bytes(index.memory_bytes)} in memory" if index.memory_bytes else "nothing in memory"
    )
    shards = f"{index.shards:,} shards" if index.shards > 1 else "one shard"
    yield f"stored in the end: {_bytes(kept)}{month}; the index: {index.kind}, {shards}, {memory}"
    yield ""
    yield from _caching(weighed, usd)


def _caching(weighed: Caching, usd: Costs) -> Iterator[str]:
    saves = "" if usd.caching_saves is None else f" ({usd.caching_saves:,.0f} USD less)"
    keeping = ""
    if usd.keeping_the_cache is not None:
        keeping = f", {usd.keeping_the_cache:,.0f} USD to keep so long"
    yield (
        f"caching: features and both trainings take {weighed.cached_hours:,.2f} hours{saves} with "
        f"a cache of {_bytes(weighed.cache_bytes)}{keeping};"
    )
    yield f"running the encoder at each step instead takes {weighed.recomputed_hours:,.2f} hours."
    if weighed.passes_to_pay is None:
        yield "The cache never pays here: reading it takes longer than encoding."
    else:
        yield (
            f"The cache saves time from {weighed.passes_to_pay:.2f} passes over the pictures on; "
            f"these are {weighed.passes:.2f}."
        )
    yield (
        f"A cache on storage slower than {weighed.gb_per_s_to_pay:.3g} GB/s is slower than the "
        f"encoder; from {weighed.gb_per_s_never_to_wait:.3g} GB/s on training never waits for it."
    )


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        yield "  ".join(cells).rstrip()


def _bytes(num: float) -> str:
    return f"{_count(num)}B" if num else "-"


def _count(num: float) -> str:
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if num >= size:
            return f"{num / size:,.4g} {unit}"
    return f"{num:,.4g} "
