"""What fp16, bf16 and int8 tokens do to loss and recall of a short training of stage 1.

    python benchmarks/token_dtypes.py [--features F --captions PAIRS] [--steps N] [--seeds N]

F are features as fp16, by default those that `make demo` leaves; they are coded anew in each type,
as `viaduct features` codes them, with int8's channels from the tokens of 256 pictures. For each
type and seed `viaduct train-stage1` trains the demo's small model on the same pictures in the same
order. Printed are the greatest error of any channel in units of its standard deviation, and the
last validation: losses and recall at 1. Runs of one type that differ in their seed alone say what a
difference between types is worth. The last line is one JSON object with all figures.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.accounting import Account
from pipeline.dataset import Dataset
from pipeline.draft import Draft
from pipeline.features import token_columns
from pipeline.schemas import TOKEN_DTYPES, features_schema
from pipeline.shard import commit_table
from pipeline.storage import Folder
from pipeline.token_codes import Channels
from pipeline.token_reader import TokenReader, has_tokens

SAMPLE = 256
TRAINING = {"recipe": "demo", "log-every": 10, "device": "cpu"}


def present_places(features: Dataset, number: int) -> list[tuple[int, int]]:
    return [(number, row) for row in np.flatnonzero(has_tokens(features.shard(number))).tolist()]


def sample_of(features: Dataset) -> np.ndarray:
    """float32[N, P, C]: tokens of pictures spread over the dataset."""
    places = [place for number in features.records for place in present_places(features, number)]
    chosen = np.linspace(0, len(places) - 1, min(SAMPLE, len(places))).astype(int)
    return TokenReader(features).read([places[at] for at in chosen]).astype(np.float32)


def coded(features: Dataset, dtype: str, channels: Channels, home: Path) -> Dataset:
    """The same features in another type."""
    lineage = features.manifest.lineage
    encoder = lineage.frozen["encoder"]
    size = encoder["num_tokens"], encoder["width"]
    schema = features_schema(*size, dtype, channels.as_metadata if dtype == "int8" else None)
    lineage = replace(lineage, config={**lineage.config, "dtype": dtype})
    draft = Draft.begin(Folder.at(home / dtype), "features", schema, lineage)
    reader = TokenReader(features)
    for number in features.records:
        shard, places = features.shard(number), present_places(features, number)
        tokens = reader.read(places).astype(np.float32)
        uids = shard.table.column("uid").to_pylist()
        columns = token_columns(tokens, has_tokens(shard).tolist(), uids, dtype, channels)
        table = pa.table({"uid": uids, **columns}, schema=schema)
        kept = Account.all_kept(table.num_rows)
        commit_table(draft.folder, number, table, draft.rows_per_batch, pictures=kept)
    return draft.publish(draft.committed().values())


def channel_error(features: Dataset, other: Dataset) -> float:
    """Root mean square over the sample, of the worst channel in units of its spread."""
    exact, found = sample_of(features), sample_of_type(other)
    spread = exact.std(axis=(0, 1))
    error = np.sqrt(np.square(found - exact).mean(axis=(0, 1)))
    return float((error[spread > 0] / spread[spread > 0]).max())


def sample_of_type(features: Dataset) -> np.ndarray:
    """As `sample_of`, where bf16 comes as its bits."""
    if features.manifest.lineage.config["dtype"] != "bf16":
        return sample_of(features)
    bits = sample_of(features).astype(np.uint32)  # the bits are whole numbers that float32 holds
    return (bits << 16).view(np.float32)


def trained(features: Dataset, captions: str, out: Path, steps: int, seed: int) -> dict[str, Any]:
    """The last validation of a training."""
    options = TRAINING | {"steps": steps, "seed": seed}  # the last step is validated
    words = [f"--{name}={value}" for name, value in options.items()]
    where = [f"--features={features.folder}", f"--captions={captions}", f"--out={out}"]
    viaduct = Path(sys.executable).with_name("viaduct")
    subprocess.run([viaduct, "train-stage1", *where, *words], check=True, stdout=sys.stderr)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return next(line for line in reversed(lines) if line["split"] == "validation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", default="runs/demo/features", help="features as fp16")
    parser.add_argument("--captions", default="runs/demo/pairs", help="the pairs beside them")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    features = Dataset.open(arguments.features, "features")
    if features.manifest.lineage.config["dtype"] != "fp16":
        raise SystemExit(f"{features.folder}: is not fp16")
    sample = sample_of(features)
    channels = Channels.of([sample], sample.shape[-1])
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for dtype in TOKEN_DTYPES:
            home = Path(scratch)
            other = coded(features, dtype, channels, home)
            runs = [
                trained(other, arguments.captions, home / f"{dtype}-{n}", arguments.steps, n)
                for n in range(arguments.seeds)
            ]
            found[dtype] = {"worst_channel_error": channel_error(features, other), "runs": runs}
            for seed, run in enumerate(runs):
                told = ", ".join(f"{k} {v:.4f}" for k, v in run.items() if isinstance(v, float))
                print(f"{dtype} seed {seed}: {told}", flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
