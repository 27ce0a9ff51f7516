"""Progress of long work: done, total, rate, time left."""

import logging
import sys
import time

from tqdm import tqdm

logger = logging.getLogger(__name__)

_LOG_EVERY_S = 10.0


class Progress:
    """A bar where there is a terminal, a log line every ten seconds elsewhere."""

    def __init__(self, job: str, total: int, done: int, unit: str) -> None:
        self._job, self._unit = job, unit
        self._begun = self._logged = time.monotonic()
        # tqdm counts the rate from `initial`, so what an earlier run did is not this one's speed.
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=job,
            unit=f" {unit}",
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )
        self._initial, self._done, self._total = done, done, total

    def advance(self, count: int) -> None:
        """So many more are done; of none nothing is said."""
        if not count:
            return
        self._done += count
        self._bar.update(count)
        now = time.monotonic()
        finished = self._done >= self._total
        if self._bar.disable and (finished or now - self._logged >= _LOG_EVERY_S):
            self._logged = now
            rate = (self._done - self._initial) / max(now - self._begun, 1e-9)
            left_s = (self._total - self._done) / rate if rate else float("inf")
            logger.info(
                "progress job=%s %s=%d/%d per_s=%.1f left_s=%.0f",
                *(self._job, self._unit, self._done, self._total, rate, left_s),
            )

    def close(self) -> None:
        self._bar.close()
