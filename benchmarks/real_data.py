"""Takes real pictures from URLs to searches and prints what docs/real-data.md says of it.

    python benchmarks/real_data.py [--work DIR] [--coco FOLDER] [--vit] [--no-training]

Two sets are made from Debian packages (needs apt-get, after `apt-get update`, and dpkg):

stamps   Tux Paint stamps: 785 photos and drawings with one short caption each. Clean.
clipart  Open Clip Art Library: 8,121 drawings, many of them symbolic links to others, whose title
         and description come from their uploaders. Noisy.

They are served on loopback HTTP and taken through `viaduct ingest`, `curate` and `features`, then
through both stages of training, `embed`, `evaluate`, `index` and `search`. `--coco` adds a folder
with pairs.jsonl, several captions a picture; `--vit` adds features of a ViT with random weights;
`--no-training` stops at the features. A run that was stopped goes on. The last line is one JSON
object.
"""

import argparse
import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PACKAGES = {
    "stamps": ["tuxpaint-stamps-default"],
    "clipart": ["openclipart-png", "openclipart-svg"],
}
PORT = 8765
CNN = {"encoder": "offline:efficientnet_lite0"}
VIT = {"encoder": "timm:vit_small_patch16_224", "weights": "random"}

STAGE1 = {
    "start": "offline:minilm",
    "num-queries": 8,
    "batch-size": 64,
    "steps": 300,
    "learning-rate": 3e-4,
    "final-learning-rate": 5e-5,
    "warmup-steps": 40,
    "itm-joins-at": 0.4,
    "itm-hardens-until": 1,
    "itg-joins-at": 0.7,
    "log-every": 20,
    "validate-every": 100,
    "checkpoint-every": 100,
}
STAGE2 = {
    "language-model": "offline:smollm2",
    "batch-size": 8,
    "steps": 100,
    "learning-rate": 3e-4,
    "warmup-steps": 15,
    "log-every": 10,
    "validate-every": 50,
    "checkpoint-every": 50,
    "validation-pictures": 32,
}
SEARCHES = (
    "a red apple",
    "a flag with a cross",
    "a bird",
    "a playing card",
    "a ship on the sea",
    "a map of a country",
)


def stamps(root: Path) -> Iterator[tuple[Path, str]]:
    """Each picture with the first line of the text beside it."""
    for picture in sorted((root / "usr/share/tuxpaint/stamps").rglob("*.png")):
        text = picture.with_suffix(".txt")
        if text.exists():
            yield picture, text.read_text(encoding="utf-8", errors="replace").split("\n")[0].strip()


def clipart(root: Path) -> Iterator[tuple[Path, str]]:
    """Each picture with title and description out of the SVG that it was drawn from."""
    base = root / "usr/share/openclipart"
    for picture in sorted((base / "png").rglob("*.png")):
        svg = base / "svg" / picture.relative_to(base / "png").with_suffix(".svg")
        text = svg.read_text(encoding="utf-8", errors="replace") if svg.exists() else ""
        title, about = (_element(text, tag) for tag in ("title", "description"))
        both = about and about != title
        yield picture, f"{title}. {about}".strip(". ") if both else title


def _element(text: str, tag: str) -> str:
    found = re.search(rf"<dc:{tag}\b[^>]*>([^<]*)</dc:{tag}>", text)
    return " ".join(html.unescape(found.group(1)).split()) if found else ""


def make_set(name: str, out: Path) -> None:
    """Unpack a set's packages and lay out pairs.jsonl and images/; kept if it is there."""
    if (out / "pairs.jsonl").exists():
        return
    shutil.rmtree(out, ignore_errors=True)
    (out / "images").mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        command = ["apt-get", "download", *PACKAGES[name]]
        subprocess.run(command, cwd=scratch, check=True, stdout=sys.stderr)
        for package in Path(scratch).glob("*.deb"):
            subprocess.run(["dpkg", "-x", str(package), scratch], check=True)
        pairs = {"stamps": stamps, "clipart": clipart}[name](Path(scratch))
        lines = []
        for number, (picture, caption) in enumerate(pairs):
            file = f"images/{number:05d}.png"
            shutil.copyfile(picture, out / file)
            lines.append(json.dumps({"file": file, "caption": caption}, ensure_ascii=False))
    (out / "pairs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_urls(sets: Path, out: Path) -> int:
    """One table of URLs and captions over all sets; returns its rows."""
    rows = []
    for name in PACKAGES:
        for line in (sets / name / "pairs.jsonl").read_text(encoding="utf-8").splitlines():
            pair = json.loads(line)
            url = f"http://127.0.0.1:{PORT}/{name}/{pair['file']}"
            rows.append(json.dumps({"url": url, "caption": pair["caption"]}, ensure_ascii=False))
    out.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return len(rows)


@contextmanager
def served(folder: Path) -> Iterator[None]:
    """The folder on loopback HTTP, by Python's own server in a process of its own."""
    command = [sys.executable, "-m", "http.server", str(PORT), "--bind", "127.0.0.1"]
    server = subprocess.Popen(
        [*command, "--directory", str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/", timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        if server.poll() is not None:
            raise RuntimeError(f"port {PORT} is taken")
        yield
    finally:
        server.kill()
        server.wait()


def viaduct(command: str, *arguments: str, **options: Any) -> float:
    """Run one command as a user would; its seconds."""
    begun = time.monotonic()
    program = Path(sys.executable).with_name("viaduct")
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    subprocess.run([str(program), command, *arguments, *flags], check=True)
    return round(time.monotonic() - begun, 1)


def made(command: str, source: str, out: Path, **options: Any) -> dict[str, Any]:
    """Run a command that makes a dataset; what its records say of the run."""
    wall_s = viaduct(command, source, out=out, **options)
    dataset = json.loads((out / "dataset.json").read_text())
    # The run that made the shards, not one that found them whole.
    runs = json.loads((out / "run.json").read_text())["runs"]
    phases = [phase for run in runs for phase in run["phases"] if phase.get("shards_made")]
    return {
        "wall_s": wall_s,
        "work_s": round(sum(phase["seconds"] for phase in phases), 1),
        "peak_mb": max(phase["worker_peak_rss_bytes"] for phase in phases) // 10**6,
        "driver_peak_mb": max(run.get("peak_rss_bytes", 0) for run in runs) // 10**6,
        **{key: dataset[key] for key in ("rows", "pictures", "captions", "digest")},
        "bytes": sum(file.stat().st_size for file in out.rglob("*.arrow")),
    }


def take_through(source: str, work: Path, encoders: dict[str, dict[str, str]]) -> dict[str, Any]:
    """A source through ingest, curate and features of each encoder."""
    raw, pairs = work / "raw", work / "pairs"
    steps = {
        "ingest": made("ingest", source, raw, allow_host="127.0.0.1", per_host=32),
        "curate": made("curate", str(raw), pairs),
    }
    for name, options in encoders.items():
        features = work / f"features-{name}"
        steps[f"features {name}"] = made("features", str(pairs), features, **options)
    return steps


def train_and_ask(work: Path) -> dict[str, Any]:
    """From pairs and CNN features to searches; losses, recall and what was found."""
    features, pairs = work / "features-cnn", work / "pairs"
    stage1, stage2, embeddings, index = (
        work / name for name in ("stage1", "stage2", "embeddings", "index")
    )
    data = {"features": features, "captions": pairs}
    from_stage1 = data | {"checkpoint": stage1}
    wall_s = {
        "train-stage1": viaduct("train-stage1", out=stage1, **data, **STAGE1),
        "train-stage2": viaduct("train-stage2", out=stage2, **from_stage1, **STAGE2),
        "embed": viaduct("embed", out=embeddings, **from_stage1),
        "evaluate": viaduct(
            "evaluate", str(embeddings), out=work / "evaluation.json", rerank=16, **from_stage1
        ),
        "index": viaduct("index", str(embeddings), out=index, pairs=pairs, checkpoint=stage1),
        "search": viaduct("search", str(index), *SEARCHES, k=5, save=work / "searches"),
    }
    viaduct("report", str(work))
    evaluation, found = (
        json.loads((work / name).read_text())
        for name in ("evaluation.json", "searches/results.json")
    )
    return {
        "wall_s": wall_s,
        "stage1": losses(stage1),
        "stage2": losses(stage2),
        "evaluation": evaluation,
        "searches": found["searches"],
    }


def losses(folder: Path) -> list[dict[str, Any]]:
    """What each validation of a training measured."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] == "validation"]


def table(steps: dict[str, dict[str, Any]]) -> str:
    """The measurements as they stand in the document."""
    lines = [
        "| step | pictures in | kept | not kept | wall s | pictures/s | worker peak MB | MB out |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, step in steps.items():
        pictures = step["pictures"]
        dropped = ", ".join(f"{reason} {count:,}" for reason, count in pictures["dropped"].items())
        rate = pictures["in"] / step["work_s"]
        lines.append(
            f"| {name} | {pictures['in']:,} | {pictures['kept']:,} | {dropped or '-'} "
            f"| {step['wall_s']} | {rate:.0f} | {step['peak_mb']:,} | {step['bytes'] / 1e6:,.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/real-data"))
    parser.add_argument("--coco", type=Path, help="a folder with pairs.jsonl")
    parser.add_argument("--vit", action="store_true", help="also a ViT with random weights")
    parser.add_argument("--no-training", action="store_true", help="stop at the features")
    arguments = parser.parse_args()
    work = arguments.work.absolute()
    encoders = {"cnn": CNN, "vit": VIT} if arguments.vit else {"cnn": CNN}

    for name in PACKAGES:
        make_set(name, work / "sets" / name)
    urls = work / "urls.jsonl"
    num_rows = write_urls(work / "sets", urls)
    with served(work / "sets"):
        results = {"stamps+clipart": take_through(str(urls), work / "web", encoders)}
    assert results["stamps+clipart"]["ingest"]["pictures"]["in"] == num_rows
    if arguments.coco:
        results["coco"] = take_through(str(arguments.coco), work / "coco", encoders)
    for name, steps in results.items():
        print(f"\n{name}\n\n{table(steps)}")
    answers = {} if arguments.no_training else {"answers": train_and_ask(work / "web")}
    print(json.dumps(results | answers))


if __name__ == "__main__":
    main()
