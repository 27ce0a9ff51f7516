"""What CapFilt does for a training on a web of which two captions in five are wrong or say nothing.

    python benchmarks/capfilt.py [--full] [--work DIR] [--seeds N] [--arms a d e]
                                 [--pages N] [--clean N] [--test N] [--steps N] [--tune-steps N]

Scenes are painted whose truth is known (benchmarks/capfilt_web.py), and the same small stage 1 is
trained from scratch with equal steps on the same pictures, each arm with other captions:

a    the web's
b    the web's, without those that the judge of d calls unmatched
c    CapFilt with one model, fine-tuned on clean pairs, as captioner and judge
d    CapFilt with two models, fine-tuned apart from the same checkpoint (a's) on the same pairs
e    the true ones

Every arm also trains on the clean pairs that teach captioner and judge. All are compared on clean
held-out scenes: recall at 1 both ways and ITG loss, with differences to (a) paired by picture and
bootstrap intervals over pictures and seeds.

Without arguments: one seed, arms a, d and e. `--full`: five arms, three seeds, each result appended
to benchmarks/results/capfilt.jsonl; what is there already is not run again, so a run that was
stopped goes on. The last line is one JSON object: `gap_closed`, the share of the distance from (a)
to (e) that (d) closes in recall at 1 (mean of both directions), and each arm's figures.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from capfilt_web import WebConfig, make_web, page_uid
from scipy import stats

from indexes.recall import ranks
from model.checkpoint import Checkpoint
from model.checkpoint_models import load_stage1
from model.itg import caption_loss
from model.stage1 import Stage1
from pipeline.dataset import Dataset
from pipeline.loader import Batch, Pairs

RESULTS = Path(__file__).parent / "results" / "capfilt.jsonl"
ARMS = ("a", "b", "c", "d", "e")

STAGE1 = {
    "start": "scratch",
    "num-layers": 3,
    "width": 128,
    "num-heads": 4,
    "num-queries": 8,
    "embed-dim": 128,
    "vocab-size": 2000,
    "dropout": 0,
    "device": "cpu",
    "threads": 2,
    "log-every": 25,
    "validate-every": 250,
    "checkpoint-every": 50,
    "validation-pictures": 256,
}
TRAIN = STAGE1 | {
    "batch-size": 128,
    "learning-rate": 1e-3,
    "final-learning-rate": 1e-4,
    "warmup-steps": 40,
    "itm-joins-at": 0.2,
    "itm-hardens-until": 1,
}
TUNE = {
    "batch-size": 128,
    "learning-rate": 3e-4,
    "final-learning-rate": 0,
    "warmup-steps": 10,
    "itm-joins-at": 0,
    "itm-hardens-until": 0,
    "device": "cpu",
    "threads": 2,
    "log-every": 25,
    "validate-every": 50,
    "checkpoint-every": 50,
}
CAPFILT = {
    "method": "nucleus",
    "num-captions": 5,
    "min-tokens": 4,
    "device": "cpu",
}
SELECT = {"top-k": 1, "web-threshold": 0.5, "synthetic-threshold": 0.5}
TUNED = {"captioner": "itg", "judge": "itc,itm", "shared": "itc,itm,itg"}
"""What is fine-tuned on clean pairs, and by which losses."""


def viaduct(command: str, *arguments: Any, **options: Any) -> None:
    """Run one command as a user would."""
    flags: list[str] = []
    for name, value in options.items():
        its = value if isinstance(value, (list, tuple)) else [value]
        flags += [f"--{name.replace('_', '-')}", *map(str, its)]
    words = [sys.executable, "-m", "jobs.cli", command, *map(str, arguments), *flags]
    subprocess.run(words, check=True, stdout=sys.stderr)


class Web:
    """The pictures with their features, and what is done with them under one seed."""

    def __init__(self, home: Path, config: WebConfig, steps: int, tune_steps: int) -> None:
        self.home = home
        self.steps, self.tune_steps = steps, tune_steps
        self.pages = make_web(home, config)
        for family in ("web", "clean"):
            pairs, out = self.pairs(family), self.features(family)
            if not (out / "dataset.json").exists():
                viaduct("features", pairs, out=out, encoder="offline:efficientnet_lite0")

    def pairs(self, family: str) -> Path:
        return self.home / family / "pairs"

    def features(self, family: str) -> Path:
        return self.home / family / "features"

    def trained(self, captions: Path, out: Path, seed: int) -> Path:
        """A training from scratch on these captions and on the clean pairs."""
        data = {
            "features": [self.features("web"), self.features("clean")],
            "captions": [captions, self.pairs("clean")],
        }
        viaduct("train-stage1", **data, out=out, seed=seed, steps=self.steps, **TRAIN)
        return out

    def tuned(self, start: Path, role: str, out: Path, seed: int) -> Path:
        """A checkpoint fine-tuned on the clean pairs for its role."""
        data = {"features": self.features("clean"), "captions": self.pairs("clean")}
        viaduct(
            "train-stage1",
            **data,
            init=start,
            losses=TUNED[role],
            out=out,
            seed=seed,
            steps=self.tune_steps,
            **TUNE,
        )
        return out

    def candidates(self, captioner: Path, judge: Path, out: Path, seed: int) -> Path:
        data = {"features": self.features("web"), "pairs": self.pairs("web")}
        viaduct("capfilt", **data, captioner=captioner, judge=judge, out=out, seed=seed, **CAPFILT)
        return out


def captions_of(arm: str, web: Web, home: Path, seed: int) -> Path:
    """The captions that an arm trains on, made from the checkpoint of arm a."""
    if arm == "a":
        return web.pairs("web")
    if arm == "e":
        return web.home / "web/truth"
    roles = ("shared", "shared") if arm == "c" else ("captioner", "judge")
    models = [web.tuned(home / "a", role, home / role, seed) for role in dict.fromkeys(roles)]
    candidates = home / f"candidates-{'c' if arm == 'c' else 'd'}"
    web.candidates(models[0], models[-1], candidates, seed)
    options = SELECT | ({"synthetic-share": 0} if arm == "b" else {})
    viaduct("select-captions", candidates, out=home / f"captions-{arm}", **options)
    return home / f"captions-{arm}"


def measured(web: Web, checkpoint: Path) -> dict[str, Any]:
    """On the clean held-out scenes: hits at 1 of each picture, and nats a token of its caption."""
    stage1 = load_stage1(Checkpoint.open(str(checkpoint), 1))
    features, pairs = (
        Dataset.open(str(path), kind)
        for path, kind in ((web.features("web"), "features"), (web.pairs("web"), "pairs"))
    )
    held_out = Pairs(features, pairs, "test")
    numbers = np.arange(len(held_out))
    pictures, texts, itg = [], [], []
    for part in np.array_split(numbers, -(-len(numbers) // 128)):
        batch = held_out.batch(part, np.zeros(len(part)))
        pictures.append(stage1.embed_pictures(batch.tokens).numpy())
        texts.append(stage1.embed_texts(batch.texts).numpy())
        itg.append(nats_a_token(stage1, batch))
    found = ranks(np.concatenate(pictures), np.concatenate(texts), numbers)
    return {
        "picture_to_text": (found.pictures < 1).astype(int).tolist(),
        "text_to_picture": (found.captions < 1).astype(int).tolist(),
        "itg": itg,
    }


@torch.inference_mode()
def nats_a_token(stage1: Stage1, batch: Batch) -> float:
    """ITG without smoothing over a batch of pictures."""
    made = stage1.batch(batch.tokens, batch.texts, batch.picture, batch.caption)
    keys = stage1.qformer.image_keys(made.tokens, stage1.ln_vision, last=False)
    written = stage1.qformer.see_and_write(keys, made.to_write)
    _, plain = caption_loss(stage1.qformer.scores(written), made.targets)
    return float(plain) / len(made.targets)


def filter_quality(web: Web, captions: Path) -> dict[str, Any]:
    """How well the judge tells the planted faults, and what the thresholds made of it."""
    faults = {page_uid(page): page.fault for page in web.pages if page.split == "train"}
    scores, bad, rejected = [], [], []
    counts = {"kept_web": 0, "kept_synthetic": 0, "without": 0}
    for shard in Dataset.open(str(captions), "captions").shards():
        rows = shard.table.select(["uid", "captions"]).to_pylist()
        for row in rows:
            if row["uid"] not in faults:
                continue
            kept = [it["source"] for it in row["captions"] if it["status"] == "kept"]
            counts["kept_web"] += "web" in kept
            counts["kept_synthetic"] += "synthetic" in kept
            counts["without"] += not kept
            web_caption = next(it for it in row["captions"] if it["source"] == "web")
            scores.append(web_caption["scores"][0]["itm"])
            bad.append(faults[row["uid"]] is not None)
            rejected.append(scores[-1] < SELECT["web-threshold"])
    values, is_bad, out = np.array(scores), np.array(bad), np.array(rejected)
    test = stats.mannwhitneyu(values[~is_bad], values[is_bad])
    return counts | {
        "auc": float(test.statistic / ((~is_bad).sum() * is_bad.sum())),
        "precision": float((out & is_bad).sum() / max(out.sum(), 1)),
        "recall": float((out & is_bad).sum() / is_bad.sum()),
    }


def run_arm(arm: str, web: Web, home: Path, seed: int) -> dict[str, Any]:
    """Train one arm and measure it; kept in its folder, and read from there the next time."""
    file = home / f"{arm}.json"
    if file.exists():
        return json.loads(file.read_text())
    begun = time.monotonic()
    captions = captions_of(arm, web, home, seed)
    result: dict[str, Any] = {"arm": arm, "seed": seed}
    if arm in "bcd":
        result["filter"] = filter_quality(web, captions)
    web.trained(captions, home / arm, seed)
    result |= measured(web, home / arm) | {"seconds": round(time.monotonic() - begun)}
    file.write_text(json.dumps(result))
    return result


def figures(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of one arm over its seeds: recall at 1 in percent both ways, and nats a token."""
    both = ("picture_to_text", "text_to_picture")
    return {name: round(100 * float(np.mean([r[name] for r in results])), 2) for name in both} | {
        "itg": round(float(np.mean([r["itg"] for r in results])), 4)
    }


def hits(results: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """float[pictures]: recall at 1 of each picture, mean of both directions and all seeds."""
    return np.mean([[r["picture_to_text"], r["text_to_picture"]] for r in results], axis=(0, 1))


def interval(statistic: Any, *samples: np.ndarray) -> list[float]:
    """95%, bootstrapped over pictures, which stay the same in all samples."""
    found = stats.bootstrap(
        samples,
        statistic,
        paired=True,
        vectorized=False,
        n_resamples=1000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return [round(float(end), 4) for end in found]


def compared(by_arm: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Each arm's figures, their differences to (a), and how much of the gap (d) closes."""
    told: dict[str, Any] = {"arms": {arm: figures(its) for arm, its in by_arm.items()}}
    base = hits(by_arm["a"])
    for arm, its in by_arm.items():
        if arm != "a":
            mine = hits(its)
            told["arms"][arm]["gain"] = round(100 * float((mine - base).mean()), 2)
            told["arms"][arm]["gain_interval"] = [
                round(100 * end, 2) for end in interval(lambda x, y: (y - x).mean(), base, mine)
            ]
        if arm in "bcd":
            told["arms"][arm]["filter"] = {
                name: round(float(np.mean([r["filter"][name] for r in its])), 4)
                for name in its[0]["filter"]
            }
    if {"d", "e"} <= by_arm.keys():
        samples = [hits(by_arm[arm]) for arm in "ade"]

        def closed(a: np.ndarray, d: np.ndarray, e: np.ndarray) -> float:
            return (d - a).mean() / (e - a).mean()

        told["gap_closed"] = round(float(closed(*samples)), 3)
        told["gap_closed_interval"] = interval(closed, *samples)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/capfilt"))
    parser.add_argument("--full", action="store_true", help="five arms, three seeds")
    parser.add_argument("--seeds", type=int, help="1, or 3 with --full")
    parser.add_argument("--arms", nargs="+", choices=ARMS, help="a d e, or all with --full")
    for name in ("pages", "clean", "test"):
        default = getattr(WebConfig(), name)
        parser.add_argument(f"--{name}", type=int, default=default, help="of the web, pictures")
    parser.add_argument("--steps", type=int, default=350, help="of each arm")
    parser.add_argument("--tune-steps", type=int, default=100, help="of captioner and judge")
    arguments = parser.parse_args()
    work = arguments.work.absolute()
    config = WebConfig(pages=arguments.pages, clean=arguments.clean, test=arguments.test)
    arms = arguments.arms or (ARMS if arguments.full else ("a", "d", "e"))
    web = Web(work, config, arguments.steps, arguments.tune_steps)
    by_arm: dict[str, list[dict[str, Any]]] = {arm: [] for arm in sorted({"a", *arms})}
    for seed in range(arguments.seeds or (3 if arguments.full else 1)):
        for arm, its in by_arm.items():
            its.append(run_arm(arm, web, work / f"seed-{seed}", seed))
            line = {"arm": arm, "seed": seed, **figures(its[-1:])}
            line |= {name: its[-1][name] for name in ("filter", "seconds") if name in its[-1]}
            print(json.dumps(line), flush=True)
            if arguments.full:
                record(line | {"web": asdict(config)})
    print(json.dumps(compared(by_arm)))


def record(line: dict[str, Any]) -> None:
    """Append a result to the file of results, once."""
    RESULTS.parent.mkdir(exist_ok=True)
    told = json.dumps(line)
    known = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    if told not in known:
        RESULTS.write_text("\n".join([*known, told]) + "\n")


if __name__ == "__main__":
    main()
