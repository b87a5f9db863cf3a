"""What orchestration costs: starting a flow, running a task, and the share of a run that is neither work nor copying.

    python benchmarks/orchestration.py [--recipe deployments/recipes/demo.yaml] [--tasks 100] [--repeats 3]

A Prefect server is started on a free port for as long as this lasts, as on a cluster. Printed are:

    flow start    seconds from the start of a process to the first line of its flow; beside it a process that imports
                  the same and calls a plain function
    task          milliseconds of one task that does nothing, with this project's task options; beside it a plain call
    share         of the recipe's run on an empty store: 1 - (seconds in which some stage was at work) / (seconds of the
                  whole process). A stage is at work while it makes an artifact, by the store's manifests; what its
                  process needs to start counts as work here
    an hour       the same overhead, if the stages had taken an hour instead: what the share would be
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from train import spread

from infra.settings import PROJECT
from infra.storage import Store

GOALS = {"demo": 0.10, "hour": 0.02}
FLOW = """
import sys, time
from prefect import flow, get_run_logger, task
from tasks.retrying import STAGE

def nothing(number):
    return number

@flow(name="benchmark")
def many(count):
    entered = time.time()
    done = task(**STAGE)(nothing)
    started = time.perf_counter()
    for number in range(count):
        done(number)
    return entered, (time.perf_counter() - started) / max(count, 1)

def plainly(count):
    entered = time.time()
    started = time.perf_counter()
    for number in range(count):
        nothing(number)
    return entered, (time.perf_counter() - started) / max(count, 1)

print("FIGURES", *(plainly if sys.argv[1] == "plain" else many)(int(sys.argv[2])))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=PROJECT / "deployments" / "recipes" / "demo.yaml")
    parser.add_argument("--tasks", type=int, default=100, help="of which the mean is taken")
    parser.add_argument("--repeats", type=int, default=3, help="of flow start and task; the recipe runs once")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tunefleet-orchestration-") as folder, server(Path(folder)) as env:
        starts: dict[str, list[float]] = {"prefect": [], "plain": []}
        tasks: dict[str, list[float]] = {"prefect": [], "plain": []}
        for _ in range(asked.repeats):
            for way in ("prefect", "plain"):
                start, each = small_flow(way, asked.tasks, env)
                starts[way].append(start)
                tasks[way].append(1000 * each)
        figures: dict[str, Any] = {
            "flow_start_seconds": {way: spread(values) for way, values in starts.items()},
            "task_milliseconds": {way: spread(values) for way, values in tasks.items()},
            "run": whole_run(asked.recipe, Path(folder), env),
        }
    if asked.json:
        print(json.dumps(figures, indent=1))
        return 0
    for name, unit in (("flow_start_seconds", "s"), ("task_milliseconds", "ms")):
        mine, plain = figures[name]["prefect"], figures[name]["plain"]
        print(f"{name}: {mine['median']:.2f} {unit}, plain {plain['median']:.4f} {unit}")
    run = figures["run"]
    print(f"run: {run['whole']:.0f} s, of which {run['at_work']:.0f} s some stage was at work")
    print(f"share of the rest: {run['share']:.1%} (goal {GOALS['demo']:.0%}); of an hour {run['of_an_hour']:.1%} "
          f"(goal {GOALS['hour']:.0%})")  # fmt: skip
    return 0


def small_flow(way: str, count: int, env: dict[str, str]) -> tuple[float, float]:
    """(seconds until the flow's first line, seconds of one task)."""
    started = time.time()
    done = subprocess.run(
        [sys.executable, "-c", FLOW, way, str(count)], env=env, cwd=PROJECT, capture_output=True, text=True, check=True
    )
    entered, each = done.stdout.rpartition("FIGURES ")[2].split()[:2]
    return float(entered) - started, float(each)


def whole_run(recipe: Path, folder: Path, env: dict[str, str]) -> dict[str, float]:
    """Seconds of a run on an empty store, and in how many of them some stage was at work."""
    store = folder / "store"
    command = [sys.executable, "-m", "flows.cli", "run", str(recipe), "--store", str(store), "--json"]
    started = time.time()
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)
    whole = time.time() - started
    if done.returncode not in (0, 3):
        raise SystemExit(f"the run failed:\n{done.stderr[-3000:]}")
    at_work = covered(sorted(work_in(Store(str(store)))))
    rest = whole - at_work
    return {"whole": whole, "at_work": at_work, "share": rest / whole, "of_an_hour": rest / (3600 + rest)}


def work_in(store: Store) -> Iterator[tuple[float, float]]:
    """(start, end) of the making of every artifact, in seconds of the clock."""
    for path in Path(store.root).glob("*/*/manifest.json"):
        manifest = json.loads(path.read_text())
        end = datetime.fromisoformat(manifest["created"]).timestamp() + 0.5  # written in whole seconds
        yield end - manifest["seconds"], end


def covered(spans: list[tuple[float, float]]) -> float:
    """Seconds in at least one of `spans`, which are in order of their start."""
    total, until = 0.0, float("-inf")
    for start, end in spans:
        total += max(end - max(start, until), 0.0)
        until = max(until, end)
    return total


@contextmanager
def server(folder: Path) -> Iterator[dict[str, str]]:
    """The environment of processes that talk to a Prefect server of this benchmark's own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    env |= {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PYTHONPATH": str(PROJECT),
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{env['PREFECT_API_URL']}/health", timeout=2).close()
                break
            except OSError:
                time.sleep(0.5)
        yield env
    finally:
        process.terminate()
        process.wait(30)


if __name__ == "__main__":
    raise SystemExit(main())
