"""The dashboard of a large fleet that never was: what building it takes, and how soon it opens.

    python benchmarks/dashboard.py [--adapters 10000] [--tasks 20] [--runs 100] [--queries] [--store FOLDER]

Written are the files that so many runs would have left (docs/RESULTS.md), with figures drawn at random: accuracies that
flip on some documents, losses that fall, answers of a few words; who passed is registered as a release. The dashboard
is built from them as `tunefleet dashboard` does it, in a process of its own, and opened from the disk in a headless
Chromium that has never seen it. Printed are the figures, and what share of its goal each takes up:

    build        seconds of the building process, from its start to its end
    memory       the most that it had resident, MiB
    page         bytes of the page, in MB; details lie beside it
    first view   seconds from asking for the page until the fleet stands, the median of three fresh browsers

`--queries` also asks each query by itself, in a further process.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

from infra.hashing import digest_json
from infra.storage import ArtifactRef, Store
from tasks.registry.records import register
from tasks.reporting.results import FOLDER, parquet, results_path
from tasks.reporting.results_rows import started

GOALS = {"build, s": 30.0, "memory, MiB": 1024.0, "page, MB": 5.0, "first view, s": 2.0}
OPENED = 3  # times
QUERIES = ("fleet", "tradeoff", "heat_map", "history", "bench")
POINTS = 40  # of a loss curve
FLIPS = 2  # kept of a task
WORDS = ("river", "Paris", "seven", "blue", "no", "because", "the", "capital", "of", "winter", "twelve", "<b>", "naïve")
MARGIN, ALPHA, Z = 0.05, 0.05, 1.645
FIRST_RUN = datetime(2026, 1, 1, tzinfo=UTC)

Json = dict[str, Any]


def write_synthetic(store: Store, *, adapters: int, tasks: int, runs: int, seed: int = 0) -> None:
    """So many adapters, each with one target and `tasks` general tasks, spread evenly over so many runs."""
    random = Random(seed)
    for run in range(runs):
        run_id = f"{FIRST_RUN + timedelta(hours=run):%Y%m%d-%H%M%S}-{run:04x}"
        members = range(adapters * run // runs, adapters * (run + 1) // runs)
        rows = [_row(random, run_id, number, position, tasks) for position, number in enumerate(members)]
        store.write(results_path(run_id), parquet(rows))
        for row in rows:
            if row["release"]:
                _release(store, row)


def _release(store: Store, row: Json) -> None:
    def ref(kind: str, digest: str) -> ArtifactRef:
        uri = f"{store.root}/{kind}/{row['name']}-{digest[:12]}"
        return ArtifactRef(kind=kind, name=row["name"], uri=uri, digest=digest)

    register(
        store,
        **{"name": row["name"], "method": row["method"], "recipe": {}, "run_id": row["run_id"], "git_commit": None},
        **{"base_model": row["base_model"], "base_revision": None, "verdict_says": row["verdict"], "override": None},
        **{"adapter": ref("adapters", row["digest"]), "base": ref("bases", row["base_digest"])},
        **{"data": ref("datasets", row["digest"]), "verdict": ref("verdicts", row["digest"])},
        created=row["created"].isoformat(),
    )


def _row(random: Random, run_id: str, number: int, position: int, tasks: int) -> Json:
    name, method = f"adapter-{number:05d}", random.choice(("lora", "lora", "qlora", "full"))
    forgets = random.random() < 0.2  # then it does so on every task
    told = [
        _task(random, f"general-{task:02d}", "general", 0.12 if forgets else 0.04, forgets) for task in range(tasks)
    ]
    told.append(_task(random, f"{name}.held_out", "target", 0.5, False))
    verdicts = {task["verdict"] for task in told}
    verdict = "FAIL" if "FAIL" in verdicts else "INCONCLUSIVE" if "INCONCLUSIVE" in verdicts else "PASS"
    digest, data, base = digest_json(["adapter", number]), digest_json(["data", number]), digest_json(number % 4)
    seconds, tokens = random.uniform(60, 4000), random.randrange(10_000, 4_000_000)
    drops = [-task["delta"] for task in told if task["role"] == "general"]
    drop = sum(drops) / max(1, len(drops))
    pool = {"n_tasks": tasks, "drop": drop, "ci_low": drop - 0.01, "ci_high": drop + 0.01} if drops else None
    return {
        **{"run_id": run_id, "started": started(run_id), "position": position, "recipe": f"synthetic-{number % 7}"},
        **{"name": name, "status": {"PASS": "published", "FAIL": "failed"}.get(verdict, "inconclusive")},
        **{"method": method, "precision": "nf4" if method == "qlora" else "none", "verdict": verdict},
        **{"base_model": f"acme/base-{number % 4}", "base_digest": base, "data_source": f"data/{number % 50}.jsonl"},
        **{"data_kind": "chat", "rows_train": random.randrange(100, 50_000), "rows_held_out": 200},
        **{"reasons": [_words(random, 20)], "warnings": [], "digest": digest, "settings_json": '{"lora": {"r": 8}}'},
        "release": f"{name}@v1" if verdict == "PASS" else None,
        **{f"{role}_place": f"{kind}/{name}-{one[:12]}" for role, kind, one in
           (("adapter", "adapters", digest), ("verdict", "verdicts", digest), ("data", "datasets", data))},
        **{"created": started(run_id), "trainable_params": 460_800, "total_params": 134_975_808},
        **{"adapter_bytes": 1_859_909, "steps": POINTS, "tokens": tokens, "train_seconds": seconds},
        **{"tokens_per_second": tokens / seconds, "world_size": 1, "device": "cuda:0", "peak_memory_bytes": 2**34},
        **{"train_device_seconds": seconds, "score_device_seconds": 300.0, "device_seconds": seconds + 300},
        **{"alpha": ALPHA, "adjust": "holm", "tasks": told, "flips": _flips(random, told)},
        **{"curve": _curve(random, tokens), "pool": pool},
        "rows_sample": [{"id": str(row), "parts": [{"role": "user", "text": _words(random, 9), "trained": False}]}
                        for row in range(5)],
        "run": {"store": "synthetic", "timings": [{"stage": "train", "seconds": seconds}]} if position == 0 else None,
    }  # fmt: skip


def _task(random: Random, task: str, role: str, disagreement: float, forgets: bool) -> Json:
    n = random.choice((200, 400, 1000))
    flipped = sum(random.random() < disagreement for _ in range(n // 10)) * 10
    lost = round(flipped * (0.9 if forgets else 0.1 if role == "target" else random.uniform(0.4, 0.6)))
    gained = flipped - lost
    delta = (gained - lost) / n
    spread = Z * math.sqrt(max(flipped / n - delta**2, 1e-6) / n)
    low, high = delta - spread, delta + spread
    wanted = 0.1 if role == "target" else -MARGIN
    return {
        **{"task": task, "role": role, "metric": "acc", "kind": "right/wrong", "higher_is_better": True, "n": n},
        **{"base": 0.5, "adapter": 0.5 + delta, "delta": delta, "ci_low": low, "ci_high": high, "margin": abs(wanted)},
        **{"verdict": "PASS" if low > wanted else "FAIL" if high < wanted else "INCONCLUSIVE", "decides": True},
        **{"lost": lost, "gained": gained, "tier": "critical", "vote": True, "over": "the base", "seconds": 15.0},
        **{"reason": f"lost {lost} and gained {gained} of {n} documents", "needed": n, "sd": 0.3, "p_value": 0.01},
    }


def _flips(random: Random, tasks: list[Json]) -> list[Json]:
    return [
        {
            **{
                "task": task["task"],
                "doc_id": str(number),
                "kind": "lost",
                "moved": -1.0,
                "prompt": _words(random, 12),
            },
            **{"target": _words(random, 1), "base_text": _words(random, 8), "base_score": 1.0},
            **{"adapter_text": _words(random, 8), "adapter_score": 0.0, "cut": False},
        }
        for task in tasks
        for number in range(FLIPS)
    ]


def _curve(random: Random, tokens: int) -> list[Json]:
    return [
        {"step": step, "loss": 2 * math.exp(-step / 10) + random.random() / 10, "grad_norm": random.random(),
         "learning_rate": 5e-4 * (1 - step / POINTS), "tokens": tokens * step // POINTS,
         "tokens_per_second": random.uniform(900, 1100), "memory_bytes": 2**34 + step * 2**20}
        for step in range(1, POINTS + 1)
    ]  # fmt: skip


def _words(random: Random, count: int) -> str:
    return " ".join(random.choices(WORDS, k=count))


def ask(store: Store) -> Iterator[tuple[str, float]]:
    """(what, seconds) of every query."""
    from tasks.reporting.queries import open_results

    begun = time.perf_counter()
    with open_results(store) as results:
        yield "open", time.perf_counter() - begun
        for query in QUERIES:
            begun = time.perf_counter()
            getattr(results, query)()
            yield query, time.perf_counter() - begun
        begun = time.perf_counter()
        size = sum(len(text) for _, _, text in results.details())
        yield f"details, {size / 1e6:.0f} MB", time.perf_counter() - begun
        for warning in results.warnings:
            print(warning)


def build(store: Store, folder: str) -> Json:
    """Build the dashboard; figures of this process."""
    from tasks.reporting.dashboard import build_dashboard

    built = build_dashboard(store, folder)
    return {
        **{"page": built.page, "page, MB": built.size / 1e6, "files": built.files, "adapters": built.adapters},
        **{"memory, MiB": _most_memory(), "warnings": built.warnings},
    }


def _most_memory() -> float:
    """MiB that this process had resident at most. Not ru_maxrss, which counts the process that started it, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def first_view(page: str) -> float | None:
    """Seconds until the page shows its fleet, in a browser that was just started; None if there is no Chromium."""
    from tests.reporting.browser import NAMES, browser

    if not any(map(shutil.which, NAMES)):
        return None
    with browser() as tab:
        begun = time.perf_counter()
        tab.call("Page.navigate", url=Path(page).absolute().as_uri())
        tab.until("document.body && document.body.dataset.shown !== undefined")
        return time.perf_counter() - begun


def _itself(step: str, *places: str) -> subprocess.CompletedProcess[str]:
    """A step of this benchmark in a fresh process."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, __file__, "--step", step, *places]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, env=environment)


def _show(what: str, figure: float) -> None:
    goal = GOALS.get(what)
    beside = f"   {figure / goal:5.0%} of the goal of {goal:g}" if goal else ""
    print(f"{what:20} {figure:10.2f}{beside}", flush=True)


def _steps(step: str, places: list[str]) -> None:
    if step == "build":
        print(json.dumps(build(Store(places[0]), places[1])))
    elif step == "view":
        print(json.dumps(first_view(places[0])))
    else:
        for what, seconds in ask(Store(places[0])):
            _show(f"{what}, s", seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("adapters", 10_000), ("tasks", 20), ("runs", 100)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--store", help="keep the results here; if it has any they are asked as they are")
    parser.add_argument("--queries", action="store_true", help="ask each query by itself, too")
    parser.add_argument("--step", choices=("build", "view", "ask"), help=argparse.SUPPRESS)
    parser.add_argument("places", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        _steps(options.step, options.places)
        return
    with tempfile.TemporaryDirectory() as folder:
        store = Store(options.store or f"{folder}/store")
        if not store.list_names(FOLDER):
            begun = time.perf_counter()
            write_synthetic(store, adapters=options.adapters, tasks=options.tasks, runs=options.runs)
            _show("written in, s", time.perf_counter() - begun)
        files = store.list_names(FOLDER)
        _show("result files", len(files))
        _show("result files, MB", sum(store.fs.size(f"{store.root}/{FOLDER}/{file}") for file in files) / 1e6)
        begun = time.perf_counter()
        told = json.loads(_itself("build", store.root, f"{folder}/dashboard").stdout)
        _show("build, s", time.perf_counter() - begun)
        for what in ("memory, MiB", "page, MB", "adapters", "files"):
            _show({"files": "data files"}.get(what, what), told[what])
        for warning in told["warnings"][:10]:
            print(warning)
        views = [json.loads(_itself("view", told["page"]).stdout) for _ in range(OPENED)]
        if None in views:
            print("first view: not measured, because there is no Chromium here")
        else:
            _show("first view, s", statistics.median(views))
        if options.queries:
            print(_itself("ask", store.root).stdout, end="")


if __name__ == "__main__":
    main()
