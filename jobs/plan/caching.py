"""Where a cache of image tokens stops paying against running the encoder at every step."""

from dataclasses import dataclass

from jobs.plan.rates import GB
from jobs.plan.steps import Machines, Run, Step


@dataclass(frozen=True, kw_only=True)
class Caching:
    """Both trainings from cached tokens, and with the encoder run anew for each picture seen."""

    cached_hours: float
    """`features` and both trainings."""
    recomputed_hours: float
    """Both trainings with the encoder in them, on the same machines."""
    cache_bytes: float
    passes: float
    """How often training looks at each picture."""
    passes_to_pay: float | None
    """From how many on the cache saves time; None where it never does."""
    encoder_s: float
    """Seconds of encoding a picture once, all machines together."""
    read_s: float
    """Seconds of reading its cached tokens from storage; 0 where that rate is unknown."""
    gb_per_s_to_pay: float
    """Storage slower than this makes a cached pass slower than one that runs the encoder."""
    gb_per_s_never_to_wait: float
    """At this and above, training from the cache waits for nothing."""


def caching(run: Run, machines: Machines, steps: dict[str, Step]) -> Caching:
    """Weigh the two.

    Args:
        run, machines: see there.
        steps: of the run, by name.
    """
    trainings = steps["train-stage1"], steps["train-stage2"]
    seen = sum(step.pictures for step in trainings)
    encode = machines.device_s(run.encoder.flops, "encoder_share")
    decode = machines.core_s(1, "decode_per_s")
    cached_s = sum(step.hours for step in trainings) * 3600
    train_s = sum(step.device_s for step in trainings)
    recomputed_s = sum(
        machines.busy_s(step.device_s + step.pictures * encode, step.pictures * decode)
        for step in trainings
    )
    saved_a_picture = (recomputed_s - cached_s) / seen
    to_make = steps["features"].hours * 3600 / run.pairs
    read_bytes = seen * run.token_bytes
    return Caching(
        cached_hours=steps["features"].hours + cached_s / 3600,
        recomputed_hours=recomputed_s / 3600,
        cache_bytes=run.features_bytes,
        passes=seen / run.pairs,
        passes_to_pay=to_make / saved_a_picture if saved_a_picture > 0 else None,
        encoder_s=machines.busy_s(encode, decode),
        read_s=machines.read_s(run.token_bytes),
        gb_per_s_to_pay=read_bytes / GB / recomputed_s,
        gb_per_s_never_to_wait=read_bytes / GB / train_s,
    )
