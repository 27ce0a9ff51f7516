"""Plans ten million pictures from columns of hashes alone, with planted near-duplicates.

    python benchmarks/near_duplicates.py [--pictures 10000000]

The hashes are random. Of each tenth picture another one is planted with 1 to 16 bits of 256 turned,
and of each hundredth a family of 20 that share one hash, as icons on the web do. The last line is
one JSON object: seconds and peak memory of `make_plan`, and the planted pictures that it found.
"""

import argparse
import json
import resource
import time

import numpy as np
import pyarrow as pa

from pipeline.near_duplicates import NearDuplicateConfig
from pipeline.plan import PlanConfig, make_plan
from pipeline.schemas import HASHES

FAMILY = 20


def plant(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """uint8[count, 32] hashes, and bool[count], which of them are planted copies of another."""
    hashes = rng.integers(0, 256, (count, 32), dtype=np.uint8)
    planted = np.zeros(count, bool)
    places = rng.permutation(count)
    num_copied = count // 10
    originals, copies = places[:num_copied], places[num_copied : 2 * num_copied]
    hashes[copies] = hashes[originals]
    for turn in range(16):  # of each copy, 1 to 16 bits
        some = copies[rng.integers(0, 16, num_copied) >= turn]
        bit = rng.integers(0, 256, len(some))
        hashes[some, bit // 8] ^= (1 << bit % 8).astype(np.uint8)
    planted[copies] = True
    families = places[2 * num_copied :][: count // 100 // FAMILY * FAMILY].reshape(-1, FAMILY)
    hashes[families[:, 1:]] = hashes[families[:, :1]]
    planted[families[:, 1:]] = True
    return hashes, planted


def fixed(values: np.ndarray) -> pa.Array:
    """uint8[N, width] as Arrow's binary of fixed width."""
    kind = pa.binary(values.shape[1])
    return pa.Array.from_buffers(
        kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=10_000_000)
    count = parser.parse_args().pictures
    rng = np.random.default_rng(0)
    hashes, planted = plant(count, rng)
    names = np.zeros((count, 16), np.uint8)
    names[:, :8] = np.arange(count, dtype=np.int64).view(np.uint8).reshape(-1, 8)
    ones = pa.array(np.ones(count, np.int64))
    table = pa.table(
        {
            "uid": fixed(names),
            "pixels": fixed(names),
            "stored_bytes": ones,
            "original_pixels": ones,
            "num_captions": ones.cast(pa.int32()),
            "phash": fixed(hashes),
            "colours": fixed(np.zeros((count, 48), np.uint8)),
        },
        schema=HASHES,
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    begun = time.monotonic()
    shards = np.arange(count) // 1024
    plan = make_plan(table, shards, PlanConfig(), NearDuplicateConfig())
    seconds = time.monotonic() - begun
    found = np.asarray(plan.column("outcome")) == "near_duplicate"
    print(f"rss before the plan: {before} MB; pictures taken for another: {found.sum():,}")
    result = {
        "pictures": count,
        "seconds": round(seconds, 1),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "planted": int(planted.sum()),
        "found": int(found.sum()),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
