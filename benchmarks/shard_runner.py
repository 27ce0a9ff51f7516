"""The runner of shards against Ray Data over shard names, on the same work.

    python benchmarks/shard_runner.py

Two workers each, in three scenarios:

- noop: 10,000 shards with nothing to do. The rate is from the first shard handed back to the last,
  so that the start of Ray, of the workers and of Ray Data's blocks stays out; it is given apart.
- hung: one of 20 shards sleeps for ever.
- killed: one of 20 shards takes memory until Ray's memory monitor kills its worker, each time.
  Where the monitor does not act, as in some containers, the worker kills itself with SIGKILL. Here
  Ray Data runs with bounded retries too, for by default it has no bound.

Each run is a process with a Ray of its own, and is killed when its time is over. Other work on the
machine disturbs the rates, and `killed` too where it takes or frees a gigabyte meanwhile.
The last line printed is one JSON object with all figures.
"""

import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray

from jobs.cluster import ClusterConfig, session
from jobs.shards import PoolConfig, Task, run_shards
from pipeline.accounting import Account
from pipeline.errors import ViaductError
from pipeline.shard import FileEntry, ShardRecord

WORKERS = 2
ATTEMPTS = 3
DEADLINE_S = 5.0
NUM_NOOP_SHARDS = 10_000
NUM_SHARDS = 20
BAD_SHARD = 7
GOOD_SHARD_S = 0.2  # long enough that both workers are busy when the bad shard's turn comes

# All of a run, with the ten seconds or so that Ray takes to start.
NOOP_BOUND_S = 150.0
HUNG_BOUND_S = 45.0
MEMORY_BOUND_S = 100.0  # ours tries six times, with back-off

KILL_ABOVE_BYTES = 1536 << 20  # over what is in use when the run begins
STOP_TAKING_BYTES = 3 << 30  # never the whole machine, even if no kill comes
CHUNK_BYTES = 64 << 20

COMPLAINT = re.compile(r"infinite retries|retries remaining|hanging|low on memory", re.IGNORECASE)
"""What a log says of a shard that does not come."""


@dataclass(frozen=True)
class Work:
    """What a candidate is given to do."""

    scenario: str
    """noop, hung, memory or sigkill."""
    folder: Path
    """Where the workers note what they begin."""

    @property
    def num_shards(self) -> int:
        return NUM_NOOP_SHARDS if self.scenario == "noop" else NUM_SHARDS

    def make(self, number: int) -> None:
        """Make one shard, in a worker's process."""
        if self.scenario == "noop":
            return
        append(self.folder / "begun", str(number))
        if number != BAD_SHARD:
            time.sleep(GOOD_SHARD_S)
        elif self.scenario == "hung":
            while True:
                time.sleep(3600)
        elif self.scenario == "sigkill":
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            self._take_memory()

    def _take_memory(self) -> None:
        taken: list[bytes] = []
        while len(taken) * CHUNK_BYTES < STOP_TAKING_BYTES:
            taken.append(b"x" * CHUNK_BYTES)  # written to, for untouched pages take none
            time.sleep(0.05)
        time.sleep(5.0)
        append(self.folder / "spared", "")


def append(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(line + "\n")


OnDone = Callable[[int], None]


def run_actors(work: Work, on_done: OnDone) -> str:
    """Run the shards with our runner; returns what it says of those set aside."""

    def make_worker() -> Callable[[Task], ShardRecord]:
        return lambda task: make_record(work, task)

    # Only `hung` shall meet the deadline: taking memory is slow on a busy machine.
    deadline_s = DEADLINE_S if work.scenario == "hung" else 60.0
    outcome = run_shards(
        make_worker,
        [Task(number, rows=1) for number in range(work.num_shards)],
        PoolConfig(workers=WORKERS, deadline_s=deadline_s, attempts=ATTEMPTS),
        lambda task: on_done(task.number),
    )
    return "; ".join(f"set aside {n}: {reason}" for n, reason in outcome.set_aside.items())


def make_record(work: Work, task: Task) -> ShardRecord:
    """Make a shard and a record that stands for it; no file is written."""
    work.make(task.number)
    entry = FileEntry(f"{task.number:05d}.arrow", rows=1, bytes=1, digest="")
    return ShardRecord(task.number, entry, uid_digest="", pictures=Account.all_kept(1))


class DataWorker:
    """What Ray Data's actors run."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        self._work.make(row["item"])
        return row


def run_ray_data(work: Work, on_done: OnDone, **options: Any) -> str:
    """Run the shards with Ray Data; it has nothing to say of one that failed."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    numbers = list(range(work.num_shards))
    made = ray.data.from_items(numbers, override_num_blocks=len(numbers)).map(
        DataWorker,
        fn_constructor_args=(work,),
        compute=ray.data.ActorPoolStrategy(size=WORKERS),
        **options,
    )
    for row in made.iter_rows():
        on_done(row["item"])
    return ""


def run_ray_data_bounded(work: Work, on_done: OnDone) -> str:
    """Run the shards with Ray Data told to give up a shard as we do, and to go on without it."""
    ray.data.DataContext.get_current().max_errored_blocks = -1
    return run_ray_data(work, on_done, max_task_retries=ATTEMPTS - 1)


CANDIDATES: dict[str, Callable[[Work, OnDone], str]] = {
    "actors": run_actors,
    "ray_data": run_ray_data,
    "ray_data_bounded": run_ray_data_bounded,
}


def run(candidate: str, work: Work) -> None:
    """Run one candidate in this process.

    Each shard is written down as it comes, so that a run that is killed leaves its figures too.
    """
    with session(ClusterConfig(cpus=WORKERS)), (work.folder / "done").open("w", 1) as done:
        begun = time.monotonic()

        def on_done(number: int) -> None:
            done.write(f"{time.monotonic() - begun} {number}\n")

        try:
            said = CANDIDATES[candidate](work, on_done)
        except (ray.exceptions.RayError, ViaductError) as error:
            said = f"ended by {type(error).__name__}: {str(error).strip().splitlines()[0]}"
        end = {"total_s": round(time.monotonic() - begun, 1), "said": said}
        (work.folder / "end.json").write_text(json.dumps(end))


def observe(candidate: str, scenario: str) -> dict[str, Any]:
    """Run one candidate in a process of its own until it ends or its time is over.

    Raises:
        RuntimeError: it could not be run at all.
    """
    bounds = {"noop": NOOP_BOUND_S, "hung": HUNG_BOUND_S}
    bound_s = bounds.get(scenario, MEMORY_BOUND_S)
    print(f"{scenario}, {candidate}: at most {bound_s:g} s", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="shard_runner-") as name:
        log = Path(name, "log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, __file__, candidate, scenario, name],
                stdout=output,
                stderr=output,
                env=environment(scenario),
            )
            try:
                status = process.wait(bound_s)
            except subprocess.TimeoutExpired:
                status = 0
            finally:
                kill_family(process)
        if status:
            raise RuntimeError(log.read_text(errors="replace")[-2000:])
        return figures(Work(scenario, Path(name)))


def environment(scenario: str) -> dict[str, str]:
    """Variables of a run: a Ray of its own, and a low bar for the memory monitor."""
    variables = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    if scenario == "memory":
        memory = psutil.virtual_memory()
        bar = (memory.total - memory.available + KILL_ABOVE_BYTES) / memory.total
        variables["RAY_memory_usage_threshold"] = f"{min(bar, 0.95):.4f}"
        variables["RAY_memory_monitor_refresh_ms"] = "100"
    return variables


def kill_family(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started, Ray's own included; nothing if it has ended."""
    if process.poll() is not None:
        return
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=10)


def figures(work: Work) -> dict[str, Any]:
    """Read what a run wrote down."""
    end_file = work.folder / "end.json"
    end = json.loads(end_file.read_text()) if end_file.exists() else {"total_s": None, "said": ""}
    done = [line.split() for line in lines(work.folder / "done")]
    times = [float(at) for at, _ in done]
    result: dict[str, Any] = {
        "ended": end_file.exists(),
        "total_s": end["total_s"],
        "done": len(done),
        "first_done_s": round(times[0], 1) if times else None,
        "last_done_s": round(times[-1], 1) if times else None,
    }
    if work.scenario == "noop":
        return {**result, "per_s": rate(times)}
    begun = Counter(int(line) for line in lines(work.folder / "begun"))
    return {
        **result,
        "not_done": sorted(set(range(work.num_shards)) - {int(number) for _, number in done}),
        "bad_begun": begun[BAD_SHARD],
        "others_begun_again": sorted(n for n, c in begun.items() if c > 1 and n != BAD_SHARD),
        "said": end["said"] or last_complaint(work.folder / "log"),
        "spared": (work.folder / "spared").exists(),
    }


def rate(times: list[float]) -> float | None:
    """Shards per second from the first to the last."""
    return round((len(times) - 1) / (times[-1] - times[0]), 1) if len(times) > 1 else None


def lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines() if path.exists() else []


def last_complaint(log: Path) -> str:
    """The log's last line on a shard that does not come, without its colours."""
    said = [line.split(" Error:")[0] for line in lines(log) if COMPLAINT.search(line)]
    return re.sub(r"\x1b\[\d+m", "", said[-1])[:200] if said else ""


def observe_killed() -> dict[str, Any]:
    """The scenario `killed`, by the memory monitor if it acts here."""
    scenario, killer = "memory", "memory monitor"
    actors = observe("actors", scenario)
    if actors["spared"]:
        scenario, killer = "sigkill", "SIGKILL"
        actors = observe("actors", scenario)
    others = ("ray_data", "ray_data_bounded")
    return {"by": killer, "actors": actors, **{name: observe(name, scenario) for name in others}}


def machine() -> dict[str, Any]:
    """The processor, its cores, and how busy they are with other work."""
    models = [line.split(":")[1] for line in lines(Path("/proc/cpuinfo")) if "model name" in line]
    name = platform.processor() or (models[0].strip() if models else platform.machine())
    return {"cpu": name, "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}


def print_table(results: dict[str, Any]) -> None:
    """Print the figures for a reader."""
    print("{cpu}, {cores} cores, load {load} at the start".format(**results["machine"]))
    print(f"Ray {results['ray']}, {WORKERS} workers, wall time {results['wall_s']} s\n")
    row = "{:9}{:18}{:>8}{:>10}{:>8}{:>9}  {}".format
    print(row("scenario", "candidate", "ended s", "per s", "done", "begun", "not done"))
    for scenario in ("noop", "hung", "killed"):
        for candidate, seen in results[scenario].items():
            if candidate not in CANDIDATES:
                continue
            ended = seen["total_s"] if seen["ended"] else "never"
            cells = (ended, seen.get("per_s", ""), seen["done"], seen.get("bad_begun", ""))
            print(row(scenario, candidate, *cells, seen.get("not_done", "")))
            if seen.get("said"):
                print(f"         {seen['said']}")
    print("\nended: without Ray's start; never: killed when its time was over")
    print(f"begun: how often the bad shard, {BAD_SHARD}, was; killed by {results['killed']['by']}")


def main() -> None:
    begun = time.monotonic()
    results: dict[str, Any] = {"machine": machine(), "ray": ray.__version__}
    pair = ("actors", "ray_data")
    results["noop"] = {candidate: observe(candidate, "noop") for candidate in pair}
    results["noop_per_s"] = {name: seen["per_s"] for name, seen in results["noop"].items()}
    results["hung"] = {candidate: observe(candidate, "hung") for candidate in pair}
    results["killed"] = observe_killed()
    results["wall_s"] = round(time.monotonic() - begun)
    print_table(results)
    print(json.dumps(results))


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        run(sys.argv[1], Work(sys.argv[2], Path(sys.argv[3])))
