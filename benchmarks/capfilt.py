"""What CapFilt does for a training on a web of which two captions in five are wrong or say nothing.

    python benchmarks/capfilt.py [--full] [--work DIR] [--seeds N] [--arms a d e]
                                 [--pages N] [--clean N] [--test N] [--steps N]

Scenes are painted whose truth is known (benchmarks/capfilt_web.py), and the same small stage 1 is
trained from scratch with equal steps on the same pictures, each arm with other captions:

a    the web's
b    the web's, without those that d's judge says do not belong to their pictures
c    CapFilt with one model as captioner and judge
d    CapFilt with two models, fine-tuned apart from the same checkpoint, which is a's
e    the true ones

The judge is fine-tuned on clean pairs and filters the web's captions. The captioner is fine-tuned
on the clean pairs and on what is left of the web; it writes for every picture, the judge scores
what it wrote, and the best two of both sources are kept. In c one model, fine-tuned by all losses,
is both.

Every arm also trains on the clean pairs. All are compared on clean held-out scenes: recall at 1
both ways and ITG loss, with differences to (a) paired by picture (ITG: by batch) and seed, and 95%
intervals bootstrapped over pictures.

Without arguments: one seed, arms a, d and e. `--full`: five arms, three seeds, each result appended
to benchmarks/results/capfilt.jsonl; what is there in --work already is not run again, so a run that
was stopped goes on. The last line is one JSON object: `gap_closed`, the share of the distance from
(a) to (e) that (d) closes in recall at 1 (mean of both directions), and each arm's figures.
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
from capfilt_web import WebConfig, make_web, page_uid, things_in, things_of
from scipy import stats

from indexes.recall import ranks
from model.checkpoint import Checkpoint
from model.checkpoint_models import load_stage1
from model.itg import caption_loss
from model.stage1 import Stage1
from pipeline.candidates import SYNTHETIC, WEB
from pipeline.dataset import Dataset
from pipeline.loader import Batch, Pairs
from pipeline.schemas import KEPT
from pipeline.storage import Folder

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
    "learning-rate": 1e-3,
    "final-learning-rate": 1e-5,
    "warmup-steps": 10,
    "itm-joins-at": 0,
    "itm-hardens-until": 1.5,
    "device": "cpu",
    "threads": 2,
    "log-every": 25,
    "validate-every": 50,
    "checkpoint-every": 50,
}
ROLES = {
    "judge": {"losses": "itc,itm", "steps": 100},
    "captioner": {"losses": "itg", "steps": 300},
    "filter-of-one": {"losses": "itc,itm,itg", "steps": 100},
    "one": {"losses": "itc,itm,itg", "steps": 300},
}
"""What is fine-tuned from (a)."""
CAPFILT = {"method": "nucleus", "num-captions": 5, "min-tokens": 4, "device": "cpu"}
PASSED = 0.95
"""Share of held-out clean pairs that the threshold lets pass."""
SETTINGS = {"train": TRAIN, "tune": TUNE, "roles": ROLES, "capfilt": CAPFILT, "passed": PASSED}


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

    def __init__(self, home: Path, config: WebConfig, steps: int) -> None:
        self.home, self.config, self.steps = home, config, steps
        self.pages = make_web(home, config)
        for family in ("web", "clean"):
            pairs, out = self.pairs(family), self.features(family)
            if not (out / "dataset.json").exists():
                viaduct("features", pairs, out=out, encoder="offline:efficientnet_lite0")

    @property
    def settings(self) -> dict[str, Any]:
        """What a result depends on, beside arm and seed."""
        return {"web": asdict(self.config), "steps": self.steps, **SETTINGS}

    def pairs(self, family: str) -> Path:
        return self.home / family / "pairs"

    def features(self, family: str) -> Path:
        return self.home / family / "features"

    def data(self, captions: Path | None) -> dict[str, Any]:
        """Options of a training on the clean pairs and, where they are given, on captions of the
        web's pictures."""
        if captions is None:
            return {"features": self.features("clean"), "captions": self.pairs("clean")}
        return {
            "features": [self.features("web"), self.features("clean")],
            "captions": [captions, self.pairs("clean")],
        }

    def trained(self, captions: Path, out: Path, seed: int) -> Path:
        """A training from scratch."""
        viaduct(
            "train-stage1", **self.data(captions), out=out, seed=seed, steps=self.steps, **TRAIN
        )
        return out

    def tuned(self, start: Path, role: str, captions: Path | None, seed: int) -> Path:
        """A checkpoint fine-tuned for its role."""
        out = start.parent / role
        viaduct(
            "train-stage1",
            **self.data(captions),
            init=start,
            out=out,
            seed=seed,
            **TUNE,
            **ROLES[role],
        )
        return out

    def judged(self, judge: Path, family: str, out: Path, **options: Any) -> Path:
        """Captions with their scores: the web's and, by a captioner, its own."""
        data = {"features": self.features(family), "pairs": self.pairs(family)}
        viaduct("capfilt", **data, judge=judge, out=out, **CAPFILT, **options)
        return out

    def threshold(self, judge: Path) -> float:
        """The similarity that all but a few of held-out clean pairs reach."""
        clean = self.judged(
            judge, "clean", judge.with_name(f"{judge.name}-clean"), split="validation"
        )
        return round(float(np.quantile(web_scores(clean)["itc"], 1 - PASSED)), 3)

    def filtered(self, judge: Path, threshold: float) -> Path:
        """The web's captions that reach it."""
        everything = self.judged(judge, "web", judge.with_name(f"{judge.name}-web"))
        return select(everything, judge.with_name(f"{judge.name}-filtered"), threshold)


def select(
    candidates: Path, out: Path, threshold: float, synthetic_threshold: float | None = None
) -> Path:
    """The best captions of each picture by the judge's similarity; one threshold, or two."""
    of_written = threshold if synthetic_threshold is None else synthetic_threshold
    both = {"web-threshold": threshold, "synthetic-threshold": of_written}
    viaduct("select-captions", candidates, out=out, by="itc", **both)
    return out


def web_scores(candidates: Path, kind: str = "candidates") -> dict[str, Any]:
    """Of the judged captions of the web, side by side: uids, and `itc` and `itm`, float[N]."""
    uids, scores = [], []
    for shard in Dataset.open(str(candidates), kind).shards():
        for row in shard.table.select(["uid", "captions"]).to_pylist():
            for caption in row["captions"]:
                if caption["source"] == WEB and caption["scores"]:
                    [score] = caption["scores"]
                    uids.append(row["uid"])
                    scores.append((score["itc"], score["itm"]))
    itc, itm = np.array(scores).T
    return {"uids": uids, "itc": itc, "itm": itm}


def captions_of(arm: str, web: Web, home: Path, seed: int) -> tuple[Path, dict[str, Any]]:
    """The captions that an arm trains on, made from the checkpoint of arm a, and how good the
    filter was."""
    if arm == "a":
        return web.pairs("web"), {}
    if arm == "e":
        return web.home / "web/truth", {}
    judge_role, captioner_role = ("filter-of-one", "one") if arm == "c" else ("judge", "captioner")
    judge = web.tuned(home / "a", judge_role, None, seed)
    threshold = web.threshold(judge)
    filtered = web.filtered(judge, threshold)
    if arm == "b":
        return filtered, filter_quality(web, filtered, threshold)
    captioner = web.tuned(home / "a", captioner_role, filtered, seed)
    if arm == "c":
        judge, threshold = captioner, web.threshold(captioner)
    candidates = web.judged(
        judge, "web", home / f"candidates-{arm}", captioner=captioner, seed=seed
    )
    captions = select(candidates, home / f"captions-{arm}", threshold)
    return captions, filter_quality(web, captions, threshold)


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


def filter_quality(web: Web, captions: Path, threshold: float) -> dict[str, Any]:
    """How well the judge tells the planted faults, and what the thresholds made of it."""
    faults = {page_uid(page): page.fault for page in web.pages}
    told = web_scores(captions, "captions")
    bad = np.array([faults[uid] is not None for uid in told["uids"]])
    out = told["itc"] < threshold
    summary = json.loads((captions / "summary.json").read_text())
    counts = ("web_kept", "synthetic_kept", "without_caption")
    return {
        "threshold": threshold,
        "auc_itc": area(told["itc"][~bad], told["itc"][bad]),
        "auc_itm": area(told["itm"][~bad], told["itm"][bad]),
        "precision": float((out & bad).sum() / max(out.sum(), 1)),
        "recall": float((out & bad).sum() / bad.sum()),
        **{name: summary[name] for name in counts},
        **written_quality(web, captions),
    }


def area(good: np.ndarray, bad: np.ndarray) -> float:
    """Under the ROC curve: how often a good one scores more than a bad one."""
    return float(stats.mannwhitneyu(good, bad).statistic / (len(good) * len(bad)))


def written_quality(web: Web, captions: Path) -> dict[str, float]:
    """Of the captions that were written and kept: the share of things that they name which are
    there, and of the captions that name all that is there and nothing else."""
    pages = {page_uid(page): page for page in web.pages}
    named = right = alike = count = 0
    for shard in Dataset.open(str(captions), "captions").shards():
        for row in shard.table.select(["uid", "captions"]).to_pylist():
            for caption in row["captions"]:
                if caption["source"] == SYNTHETIC and caption["status"] == KEPT:
                    there = things_of(pages[row["uid"]], web.config)
                    its = things_in(caption["text"])
                    named, right = named + its.total(), right + (its & there).total()
                    alike, count = alike + (its == there), count + 1
    if not count:
        return {}
    return {"written_precision": right / max(named, 1), "written_exact": alike / count}


def run_arm(arm: str, web: Web, home: Path, seed: int) -> dict[str, Any]:
    """Train one arm and measure it; kept in its folder, and read from there the next time.

    The program ends where the result there is one of other settings.
    """
    file = home / f"{arm}.json"
    if file.exists():
        kept = json.loads(file.read_text())
        if kept["settings"] != json.loads(json.dumps(web.settings)):
            sys.exit(f"{file}: was measured with other settings; choose another --work")
        return kept
    begun = time.monotonic()
    captions, quality = captions_of(arm, web, home, seed)
    web.trained(captions, home / arm, seed)
    result = {
        "arm": arm,
        "seed": seed,
        "settings": web.settings,
        "filter": quality,
        **measured(web, home / arm),
        "seconds": round(time.monotonic() - begun),
    }
    Folder.at(home).publish_json(file.name, result)
    return result


def figures(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of one arm over its seeds: recall at 1 in percent both ways, and nats a token."""
    both = ("picture_to_text", "text_to_picture")
    return {name: round(100 * float(np.mean([r[name] for r in results])), 2) for name in both} | {
        "itg": round(float(np.mean([r["itg"] for r in results])), 4)
    }


def nats(results: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """float[batches]: nats a token of each held-out batch, mean of all seeds."""
    return np.mean([r["itg"] for r in results], axis=0)


def hits(results: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """float[pictures]: recall at 1 of each picture, mean of both directions and all seeds."""
    return np.mean([[r["picture_to_text"], r["text_to_picture"]] for r in results], axis=(0, 1))


def interval(statistic: Any, *samples: np.ndarray) -> list[float]:
    """95%, bootstrapped over pictures or batches, which stay the same in all samples."""
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
            told["arms"][arm] |= {
                "gain": round(100 * difference(base, mine), 2),
                "gain_interval": [round(100 * end, 2) for end in interval(difference, base, mine)],
                "itg_gain": round(difference(nats(by_arm["a"]), nats(its)), 4),
                "itg_gain_interval": interval(difference, nats(by_arm["a"]), nats(its)),
            }
        if arm in "bcd":
            told["arms"][arm]["filter"] = {
                name: round(float(np.mean([r["filter"][name] for r in its])), 4)
                for name in its[0]["filter"]
            }
    if {"d", "e"} <= by_arm.keys():
        ade = [by_arm[arm] for arm in "ade"]
        samples = [hits(its) for its in ade]
        told["gap_closed"] = round(closed(*samples), 3)
        told["gap_closed_interval"] = interval(closed, *samples)
        told["gap_closed_by_seed"] = [
            round(closed(*(hits([one]) for one in its)), 3) for its in zip(*ade, strict=True)
        ]
    return told


def difference(before: np.ndarray, after: np.ndarray) -> float:
    """The mean of the one less that of the other."""
    return float((after - before).mean())


def closed(worst: np.ndarray, found: np.ndarray, best: np.ndarray) -> float:
    """The share of the distance from the worst to the best that was gone."""
    return difference(worst, found) / difference(worst, best)


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
    arguments = parser.parse_args()
    work = arguments.work.absolute()
    config = WebConfig(pages=arguments.pages, clean=arguments.clean, test=arguments.test)
    arms = arguments.arms or (ARMS if arguments.full else ("a", "d", "e"))
    web = Web(work, config, arguments.steps)
    by_arm: dict[str, list[dict[str, Any]]] = {arm: [] for arm in sorted({"a", *arms})}
    for seed in range(arguments.seeds or (3 if arguments.full else 1)):
        for arm, its in by_arm.items():
            its.append(run_arm(arm, web, work / f"seed-{seed}", seed))
            one = its[-1]
            line = {"arm": arm, "seed": seed, **figures([one])}
            line |= {name: one[name] for name in ("filter", "seconds")}
            print(json.dumps(line), flush=True)
            if arguments.full:
                record(line | {"settings": one["settings"]})
    print(json.dumps(compared(by_arm)))


def record(line: dict[str, Any]) -> None:
    """Put a result into the file of results, in place of one of the same arm, seed and settings."""

    def which(line: dict[str, Any]) -> dict[str, Any]:
        return {name: line[name] for name in ("arm", "seed", "settings")}

    line = json.loads(json.dumps(line))
    RESULTS.parent.mkdir(exist_ok=True)
    known = map(json.loads, RESULTS.read_text().splitlines()) if RESULTS.exists() else []
    lines = [*(its for its in known if which(its) != which(line)), line]
    RESULTS.write_text("".join(json.dumps(its) + "\n" for its in lines))


if __name__ == "__main__":
    main()
