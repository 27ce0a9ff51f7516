"""The loader's batches beside a plain numpy gather of the same rows.

    python benchmarks/loader.py [--pictures N] [--tokens P] [--width C] [--batch-size B]
                                [--rounds N]

loader      what a rank of a training does for a step: places of the pictures, captions, keys and
            tokens, in the background, one batch ahead of a step that takes no time.
plain       the same tokens in one mapped file, as `array[rows]` and as `numpy.take` into memory
            that is there already; the faster of the two counts.

Both read from the page cache, by turns, in one process. Rates are medians over the rounds, of bytes
of tokens; batches are compared before the clock starts. The last line is one JSON object.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from jobs.malloc import keep_memory
from pipeline.accounting import Account
from pipeline.dataset import Dataset
from pipeline.draft import Draft
from pipeline.lineage import Lineage
from pipeline.loader import Pairs, ahead
from pipeline.order import Order
from pipeline.schemas import PAIRS, features_schema
from pipeline.shard import commit_table
from pipeline.storage import Folder

SHARD_ROWS = 256
STEPS = 8
"""Batches a round."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=257)
    parser.add_argument("--width", type=int, default=1408)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    keep_memory()
    with tempfile.TemporaryDirectory(prefix="viaduct-") as home:
        rates = _measure(Path(home), options)
    plain = max(rates["take"], rates["index"])
    row_bytes = options.tokens * options.width * 2
    told = {"ratio": round(rates["loader"] / plain, 3), "row_bytes": row_bytes}
    told |= {f"{name}_gb_per_s": round(rate / 1e9, 2) for name, rate in rates.items()}
    print(json.dumps(told))


def _measure(home: Path, options: argparse.Namespace) -> dict[str, float]:
    """Bytes a second of each form."""
    shape = (options.pictures, options.tokens, options.width)
    plain = np.memmap(home / "plain", np.float16, "w+", shape=shape)
    pairs = Pairs(*_write(home, plain), "train")
    order = Order(options.pictures, options.batch_size, seed=0)
    into = np.zeros((options.batch_size, *shape[1:]), np.float16)

    def take(step: int) -> np.ndarray:
        return np.take(plain, order.batch(step), axis=0, out=into, mode="clip")

    def index(step: int) -> np.ndarray:
        return np.asarray(plain)[order.batch(step)]

    for step in range(order.steps_per_epoch):  # every page is seen once
        made = pairs.batch(order.batch(step), order.caption_draw(step)).tokens.numpy()
        for form in (take, index):
            if not np.array_equal(form(step).view(np.uint16), made.view(np.uint16)):
                raise SystemExit(f"step {step}: the loader reads other tokens")

    def load(steps: range) -> None:
        made = ahead(lambda s: pairs.batch(order.batch(s), order.caption_draw(s)), steps)
        for batch in made:
            del batch

    def run_take(steps: range) -> None:
        for step in steps:
            take(step)

    def run_index(steps: range) -> None:
        for step in steps:
            index(step)

    forms: dict[str, Callable[[range], None]] = {
        "loader": load,
        "take": run_take,
        "index": run_index,
    }
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(options.rounds):
        steps = range(number * STEPS, (number + 1) * STEPS)
        for name, run in forms.items():
            begun = time.perf_counter()
            run(steps)
            seconds[name].append(time.perf_counter() - begun)
    num_bytes = STEPS * into.nbytes
    return {name: num_bytes / statistics.median(its) for name, its in seconds.items()}


def _write(home: Path, plain: np.memmap) -> tuple[Dataset, Dataset]:
    """Features of noise, in `plain` too, and the captions beside them."""
    dice = np.random.default_rng(0)
    _, num_tokens, width = plain.shape
    schema = features_schema(num_tokens, width, "fp16")
    features = Draft.begin(Folder.at(home / "features"), "features", schema, Lineage("noise", {}))
    pairs = Draft.begin(Folder.at(home / "pairs"), "pairs", PAIRS, Lineage("noise", {}))
    for number, first in enumerate(range(0, len(plain), SHARD_ROWS)):
        rows = plain[first : first + SHARD_ROWS]
        rows[:] = dice.integers(0, 30_000, rows.shape, np.uint16).view(np.float16)
        uids = [(first + row).to_bytes(16, "big") for row in range(len(rows))]
        tokens = pa.FixedShapeTensorArray.from_numpy_ndarray(np.asarray(rows))
        told = [
            {
                "uid": uid,
                "captions": [{"text": f"a picture {uid.hex()}", "source": "web", "status": "kept"}],
                "split": "train",
            }
            for uid in uids
        ]
        for draft, table in (
            (features, pa.table({"uid": uids, "tokens": tokens}, schema=schema)),
            (pairs, pa.Table.from_pylist(told, PAIRS)),
        ):
            count = Account.all_kept(len(rows))
            captions = count if draft is pairs else None
            commit_table(
                draft.folder, number, table, draft.rows_per_batch, pictures=count, captions=captions
            )
    return (
        features.publish(features.committed().values()),
        pairs.publish(pairs.committed().values()),
    )


if __name__ == "__main__":
    main()
