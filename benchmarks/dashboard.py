"""Results of a large fleet that never was, and what it takes to ask them.

    python benchmarks/dashboard.py [--adapters 10000] [--tasks 20] [--runs 100] [--store FOLDER]

Written are the files that so many runs would have left (docs/RESULTS.md), with figures drawn at random: accuracies that
flip on some documents, losses that fall, answers of a few words. Asked are all queries of the dashboard, in a process
of its own, which prints

    open      seconds until every file is checked and its light columns are loaded
    <query>   seconds of each query
    details   seconds to write every adapter as JSON text, and their sum in MB
    memory    most resident memory of the process, MB, and what it held after its imports
"""

import argparse
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from infra.hashing import digest_json
from infra.storage import Store
from tasks.reporting.results import FOLDER, parquet, results_path
from tasks.reporting.results_rows import started

QUERIES = ("fleet", "tradeoff", "heat_map", "history", "runs", "bench")
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
        rows = (_row(random, run_id, number, position, tasks) for position, number in enumerate(members))
        store.write(results_path(run_id), parquet(rows))


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
         "learning_rate": 5e-4 * (1 - step / POINTS), "tokens": tokens * step // POINTS}
        for step in range(1, POINTS + 1)
    ]  # fmt: skip


def _words(random: Random, count: int) -> str:
    return " ".join(random.choices(WORDS, k=count))


def ask(store: Store) -> Iterator[tuple[str, float]]:
    """(what, figure) of every query."""
    from tasks.reporting.queries import open_results

    before = _memory()
    begun = time.perf_counter()
    with open_results(store) as results:
        yield "open", time.perf_counter() - begun
        for query in QUERIES:
            begun = time.perf_counter()
            getattr(results, query)()
            yield query, time.perf_counter() - begun
        begun = time.perf_counter()
        size = sum(len(text) for _, _, text in results.details())
        yield "details", time.perf_counter() - begun
        yield "details, MB", size / 1e6
        for warning in results.warnings:
            print(warning)
    yield "memory before, MB", before
    yield "memory, MB", _memory()


def _memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("adapters", 10_000), ("tasks", 20), ("runs", 100)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--store", help="keep the results here; if it has any they are asked as they are")
    parser.add_argument("--ask", action="store_true", help="only ask")
    options = parser.parse_args()
    if options.ask:
        for what, figure in ask(Store(options.store)):
            print(f"{what:20} {figure:10.2f}", flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        store = Store(options.store or folder)
        if not store.list_names(FOLDER):
            begun = time.perf_counter()
            write_synthetic(store, adapters=options.adapters, tasks=options.tasks, runs=options.runs)
            print(f"{'written in':20} {time.perf_counter() - begun:10.2f}", flush=True)
        files = [f"{FOLDER}/{name}" for name in store.list_names(FOLDER)]
        print(f"{'files':20} {len(files):10d}")
        print(
            f"{'files, MB':20} {sum(store.fs.size(f'{store.root}/{file}') for file in files) / 1e6:10.2f}", flush=True
        )
        subprocess.run([sys.executable, __file__, "--ask", "--store", store.root], check=True)


if __name__ == "__main__":
    main()
