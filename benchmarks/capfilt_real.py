"""CapFilt on real pictures: clean pairs teach, noisy ones are bootstrapped; for docs/real-data.md.

    python benchmarks/capfilt_real.py [--work DIR]

The sets are those of benchmarks/real_data.py (needs apt-get, after `apt-get update`, and dpkg): of
`stamps`, whose captions are clean, two fifths are held out; `clipart` is as noisy as the web. Stage
1, started from MiniLM, learns from the other stamps alone, and from it captioner and judge are
fine-tuned apart on them: a judge that was trained on clipart's captions would remember them and let
them pass. Then clipart is bootstrapped. Three stage 1 are trained with equal steps on stamps and on
clipart

a    with its uploaders' captions
b    with those of them that the judge lets pass
d    with what is left by CapFilt

and compared on the held-out stamps: ITG loss and mean reciprocal rank both ways, with differences
to (a) paired by picture (ITG: by batch) and bootstrapped 95% intervals. Then it counts how many of
the captions that a pattern finds to be boilerplate score less than one that was written for their
picture, and how many of the others do. A run that was stopped goes on. The last line is one JSON
object.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from capfilt import PASSED, difference, interval, nats_a_token, select, viaduct, web_scores
from real_data import CNN, PACKAGES, make_set

from indexes.recall import ranks
from model.checkpoint import Checkpoint
from model.checkpoint_models import load_stage1
from pipeline.candidates import SYNTHETIC, WEB
from pipeline.dataset import Dataset
from pipeline.loader import Pairs
from pipeline.schemas import KEPT

BOILERPLATE = re.compile(
    r"clip ?art by|icon collection|svg theme|various cliparts|gramastar|icons$|iconset"
    r"|gradient collection|-theme$|aiga_symbol|svg road signs",
    re.IGNORECASE,
)
"""Captions that name a series, an author or a place of upload, and not what is to be seen."""
HELD_OUT = {"stamps": {"validation-share": 0.1, "test-share": 0.4}}
CPU = {"device": "cpu", "threads": 2}
EVERY = {"log-every": 25, "validate-every": 50, "checkpoint-every": 50}
TRAIN: dict[str, Any] = {
    "start": "offline:minilm",
    "num-queries": 8,
    "batch-size": 64,
    "learning-rate": 3e-4,
    "final-learning-rate": 3e-5,
    "warmup-steps": 30,
    "itg-joins-at": 0.4,
    "itm-joins-at": 0.4,
    "itm-hardens-until": 1.5,
}
TEACH: dict[str, Any] = {"steps": 120}
LEARN: dict[str, Any] = {"steps": 200}
TUNE: dict[str, Any] = {
    "batch-size": 64,
    "learning-rate": 3e-4,
    "final-learning-rate": 1e-5,
    "warmup-steps": 10,
    "itm-joins-at": 0,
    "itm-hardens-until": 1.5,
}
JUDGE: dict[str, Any] = {"losses": "itc,itm", "steps": 60}
# Of a smoothed captioner a tenth of the probability lies on all 30,522 words alike, and draws of
# p = 0.9 reach into it.
CAPTIONER: dict[str, Any] = {"losses": "itg", "steps": 60, "label-smoothing": 0}
CAPFILT = {"method": "nucleus", "num-captions": 5, "device": "cpu"}
BATCH = 32


class Study:
    """The two sets with their features, and what is made of them in a folder."""

    def __init__(self, home: Path) -> None:
        self.home = home
        for name in PACKAGES:
            make_set(name, home / "sets" / name)
            raw, pairs, features = (home / name / its for its in ("raw", "pairs", "features"))
            for made, command in (
                (raw, lambda s=name, o=raw: viaduct("ingest", home / "sets" / s, out=o)),
                (pairs, lambda s=name, r=raw, o=pairs: viaduct("curate", r, out=o, **held_out(s))),
                (features, lambda p=pairs, o=features: viaduct("features", p, out=o, **CNN)),
            ):
                if not (made / "dataset.json").exists():
                    command()

    def stage1(self, name: str, captions: Path | None = None, **options: Any) -> Path:
        """A training on the stamps and, where captions of it are given, on clipart."""
        features, texts = [self.home / "stamps/features"], [self.home / "stamps/pairs"]
        if captions is not None:
            features, texts = [self.home / "clipart/features", *features], [captions, *texts]
        out = self.home / name
        data = {"features": features, "captions": texts}
        viaduct("train-stage1", **data, out=out, **options, **CPU, **EVERY)
        return out

    def judged(self, judge: Path, family: str, name: str, **options: Any) -> Path:
        """The captions of a set with their scores and, by a captioner, its own beside them."""
        out, its = self.home / name, self.home / family
        data = {"features": its / "features", "pairs": its / "pairs"}
        viaduct("capfilt", **data, judge=judge, out=out, **CAPFILT, **options)
        return out


def held_out(name: str) -> dict[str, float]:
    """Shares of a set that are not trained on; clipart is not measured on."""
    return HELD_OUT.get(name, {"validation-share": 0, "test-share": 0})


def measured(home: Path, checkpoint: Path) -> dict[str, Any]:
    """On the held-out stamps: reciprocal ranks of each picture both ways, nats a token a batch."""
    stage1 = load_stage1(Checkpoint.open(str(checkpoint), 1))
    features, pairs = (
        Dataset.open(str(home / "stamps" / name), name) for name in ("features", "pairs")
    )
    test = Pairs(features, pairs, "test")
    pictures, texts, itg = [], [], []
    for part in np.array_split(np.arange(len(test)), -(-len(test) // BATCH)):
        batch = test.batch(part, np.zeros(len(part)))
        pictures.append(stage1.embed_pictures(batch.tokens).numpy())
        texts.append(stage1.embed_texts(batch.texts).numpy())
        itg.append(nats_a_token(stage1, batch))
    found = ranks(np.concatenate(pictures), np.concatenate(texts), np.arange(len(test)))
    return {
        "picture_to_text": 1 / (1 + found.pictures),
        "text_to_picture": 1 / (1 + found.captions),
        "itg": np.array(itg),
    }


def lost(candidates: Path) -> dict[str, dict[str, int]]:
    """Of the uploaders' captions how many there are, and how many score less than a written one:
    boilerplate, that which curate had let pass among it, and all others that it had."""
    counts = {kind: {"found": 0, "lost": 0} for kind in ("boilerplate", "its_kept", "others_kept")}
    for shard in Dataset.open(str(candidates), "candidates").shards():
        for row in shard.table.select(["captions"]).to_pylist():
            of: dict[str, list[tuple[float, str, str]]] = {WEB: [], SYNTHETIC: []}
            for its in row["captions"] or ():
                if its["scores"]:
                    of[its["source"]].append((its["scores"][0]["itc"], its["text"], its["status"]))
            best = max((score for score, *_ in of[SYNTHETIC]), default=-1.0)
            for score, text, status in of[WEB]:
                matches = BOILERPLATE.search(text) is not None
                kinds = ["boilerplate"] * matches
                if status == KEPT:
                    kinds.append("its_kept" if matches else "others_kept")
                for kind in kinds:
                    counts[kind]["found"] += 1
                    counts[kind]["lost"] += best > score
    return counts


def compared(base: dict[str, Any], its: dict[str, Any]) -> dict[str, Any]:
    """Means, and their differences to the base with intervals."""
    told: dict[str, Any] = {}
    for name, values in its.items():
        told[name] = round(float(values.mean()), 4)
        if its is not base:
            told[f"{name}_gain"] = round(difference(base[name], values), 4)
            told[f"{name}_interval"] = interval(difference, base[name], values)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/capfilt-real"))
    study = Study(parser.parse_args().work.absolute())
    home = study.home
    teacher = study.stage1("teacher", **TRAIN, **TEACH)
    judge = study.stage1("judge", init=teacher, **TUNE, **JUDGE)
    captioner = study.stage1("captioner", init=teacher, **TUNE, **CAPTIONER)
    clean = web_scores(study.judged(judge, "stamps", "judged-stamps", split="validation"))
    threshold = round(float(np.quantile(clean["itc"], 1 - PASSED)), 3)
    candidates = study.judged(judge, "clipart", "candidates", captioner=captioner)
    filtered = select(candidates, home / "filtered", threshold, synthetic_threshold=1)
    chosen = select(candidates, home / "captions", threshold)
    arms = {
        "a": study.stage1("a", home / "clipart/pairs", **TRAIN, **LEARN),
        "b": study.stage1("b", filtered, **TRAIN, **LEARN),
        "d": study.stage1("d", chosen, **TRAIN, **LEARN),
    }
    found = {arm: measured(home, folder) for arm, folder in arms.items()}
    result = {
        "held_out": len(found["a"]["picture_to_text"]),
        "threshold": threshold,
        "kept": json.loads((chosen / "summary.json").read_text()),
        "lost": lost(candidates),
        "arms": {arm: compared(found["a"], its) for arm, its in found.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
