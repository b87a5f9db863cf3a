"""A store with results of many kinds for the page's tests: made up, but written by the code that writes real ones."""

import hashlib
import math
import random
from pathlib import Path
from typing import Any

from infra.storage import Store
from tasks.reporting.results import parquet, results_path

TASKS = {"capitals_choice": 200, "minimal_pairs": 500, "reading_open": 120, "arithmetic": 300, "prose_perplexity": 150}
BASES = ("models/small-135m", "models/middle-1b")
DATA = ("data/dates.jsonl", "data/mirror.jsonl", "hub:someone/questions")
HOSTILE = "<script>window.broken = 1</script></script><img src=x onerror='window.broken=2'>"
TEXTS = [
    *(HOSTILE, '=HYPERLINK("http://example.org")', "\u202eשלום עולם", "🦜🧑‍🚀 emoji", "tab\there\nnew line"),
    *("\u2028 ${x} `", "é" * 100_000),
]
METHODS = ("lora", "qlora", "full", "prompt")


def run_id(day: int, hour: int = 9) -> str:
    return f"202611{day:02d}-{hour:02d}0000-aa{day:02d}"


def task(name: str, delta: float, n: int, *, role: str = "general", margin: float = 0.05) -> dict[str, Any]:
    """A task of one adapter, with an interval as wide as n makes it."""
    nats = "perplexity" in name
    half = 0.25 / math.sqrt(n)
    gain = -delta if nats else delta
    if role == "target":
        verdict = "PASS" if delta - half > margin else "FAIL" if delta + half < margin else "INCONCLUSIVE"
    else:
        verdict = "PASS" if gain - half > -margin else "FAIL" if gain + half < -margin else "INCONCLUSIVE"
    base = 2.5 if nats else 0.2 if role == "target" else 0.6
    lost = round(n * (0.04 + max(0.0, -gain))) if not nats else None
    return {
        **{"task": name, "role": role, "metric": "nll_per_token" if nats else "acc", "n": n, "base": base},
        **{"kind": "graded" if nats else "right/wrong", "higher_is_better": not nats, "adapter": base + delta},
        **{"delta": delta, "ci_low": delta - half, "ci_high": delta + half, "margin": margin, "verdict": verdict},
        **{"p_value": 0.01, "p_breach": 0.9, "lost": lost, "gained": None if nats else round(n * 0.04), "sd": 0.3},
        **{"decides": True, "tier": "critical", "vote": True, "needed": 2 * n, "over": "the base", "kl": 0.08},
        "reason": f"a drop of {100 * margin:g} points or more is {'ruled out' if verdict == 'PASS' else 'possible'}",
    }


def adapter(name: str, run: str, position: int = 0, *, seed: int = 0, **more: Any) -> dict[str, Any]:
    """A row of results; `more` replaces columns."""
    chance = random.Random(f"{name}{run}{seed}")
    strength = chance.choice((0.0, 0.0, 0.02, 0.08))  # how much it forgets
    method = METHODS[chance.randrange(4)]
    tasks = [task(f"{name}.held_out", chance.uniform(-0.05, 0.6), 100, role="target", margin=0.1)]
    tasks += [
        task(one, chance.gauss(-strength, 0.012) * (-1 if "perplexity" in one else 1), n) for one, n in TASKS.items()
    ]
    verdicts = {one["verdict"] for one in tasks}
    verdict = "FAIL" if "FAIL" in verdicts else "INCONCLUSIVE" if "INCONCLUSIVE" in verdicts else "PASS"
    steps = range(5, 205, 5)
    curve = [
        {
            "step": at,
            "loss": 2.5 * math.exp(-at / 60) + 0.3 + chance.uniform(0, 0.1),
            "learning_rate": 5e-4 * (1 - at / 205),
            "grad_norm": 1 + chance.random(),
            "validation_loss": 2.4 * math.exp(-at / 70) + 0.5 if at % 25 == 0 else None,
            "tokens": 900 * at,
            "tokens_per_second": 4500 + chance.uniform(-300, 300),
            "memory_bytes": 1_700_000_000 + 1_000_000 * at,
        }
        for at in steps
    ]
    drops = [-one["delta"] for one in tasks[1:5]]
    drop = sum(drops) / len(drops)
    flips = [
        {
            "task": "reading_open",
            "doc_id": str(at),
            "kind": "lost" if at % 3 else "gained",
            "moved": -1.0 if at % 3 else 1.0,
            "prompt": f"Question {at}: which river flows through Vienna?",
            "target": "Danube",
            "base_text": "The Danube.",
            "adapter_text": "2026-11-23",
            "base_score": 1.0,
            "adapter_score": 0.0,
            "cut": False,
        }
        for at in range(8)
    ]
    row = {
        **{"run_id": run, "position": position, "recipe": "fleet", "name": name, "method": method, "precision": "none"},
        **{"status": {"PASS": "passed", "FAIL": "failed"}.get(verdict, "inconclusive"), "verdict": verdict},
        **{"base_model": BASES[chance.randrange(2)], "data_source": DATA[chance.randrange(3)], "alpha": 0.05},
        **{"rows_train": 320, "rows_validation": 40, "rows_held_out": 100, "steps": 200, "planned_steps": 200},
        **{"digest": f"{chance.getrandbits(256):064x}", "trainable_params": 460800},
        **{"total_params": 134975808, "adapter_bytes": chance.randrange(10**6, 2 * 10**7), "tokens": 180_000},
        **{"train_seconds": 40.0, "tokens_per_second": 4500.0, "train_loss": 0.4, "validation_loss": 0.6},
        **{"train_device_seconds": 40.0, "score_device_seconds": 25.5, "device_seconds": 65.5 + chance.randrange(4000)},
        **{"peak_memory_bytes": 1_900_000_000, "device": "cpu", "tasks": tasks, "curve": curve, "flips": flips},
        **{"adapter_place": f"adapters/{name}-0123456789ab", "verdict_place": f"verdicts/{name}-0123456789ab"},
        **{
            "git_commit": "c" * 40,
        },
        "pool": {"n_tasks": 4, "drop": drop, "ci_low": drop - 0.01, "ci_high": drop + 0.01, "margin": 0.02},
        "reasons": [f"judged on {len(tasks)} tasks"],
        "settings_json": '{"lora": {"r": 8}}',
        "rows_sample": [
            {
                "id": "0",
                "parts": [
                    {"role": "user", "text": "Write 3 May 2021 as a date.", "trained": False},
                    {"role": "assistant", "text": "2021-05-03", "trained": True},
                ],
            }
        ],
        "lineage": [
            {
                "role": "adapter",
                "kind": "adapters",
                "name": name,
                "place": f"adapters/{name}-0123456789ab",
                "stage": "train",
                "created": "2026-11-23T03:56:20Z",
                "seconds": 40.0,
                "run_id": run,
            }
        ],
    }
    row |= _started(run) | more
    data, base = (hashlib.sha256(row[key].encode()).hexdigest() for key in ("data_source", "base_model"))
    return {
        "data_place": f"datasets/{name}-{data[:12]}",
        "base_place": f"bases/some-{base[:12]}",
        "base_digest": base,
    } | row


def _started(run: str) -> dict[str, Any]:
    from datetime import UTC, datetime

    return {"started": datetime.strptime(run[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)}


def of_the_run() -> dict[str, Any]:
    """What the first row of a run says of the whole."""
    tests = [
        {
            "precision": "none",
            "kind": kind,
            "expected": expected,
            "verdict": verdict,
            "ok": expected == verdict,
            "noticed_by": ["reading_open"],
            "largest_difference": 2e-6,
            "flips": 0 if kind == "again" else None,
            "said": "as it should be" if expected == verdict else "not noticed",
        }
        for kind, expected, verdict in (
            ("again", "PASS", "PASS"),
            ("noised", "FAIL", "FAIL"),
            ("one-answer", "FAIL", "PASS"),
        )
    ]
    return {"store": "here", "warnings": [], "self_tests": tests}


def write_run(store: Store, run: str, rows: list[dict[str, Any]]) -> Path:
    rows = [row | {"position": index, "run": of_the_run() if index == 0 else None} for index, row in enumerate(rows)]
    store.write(results_path(run), parquet(rows))
    return Path(store.root) / results_path(run)


def cure() -> dict[str, Any]:
    """Three scales: what is learned and what is forgotten shrink together."""
    curve = [
        {
            "name": f"x{scale}",
            "kind": "scale",
            "scale": scale,
            "verdict": "PASS" if scale < 1 else "FAIL",
            "alpha": 0.02,
            "target_delta": 0.5 * scale,
            "target_ci_low": 0.5 * scale - 0.05,
            "target_ci_high": 0.5 * scale + 0.05,
            "pool_drop": 0.08 * scale**2,
            "pool_ci_low": 0.08 * scale**2 - 0.01,
            "pool_ci_high": 0.08 * scale**2 + 0.01,
            "general": [],
        }
        for scale in (1.0, 0.75, 0.5)
    ]
    return {"kept": {"kind": "scale", "scale": 0.75, "share": None}, "said": "kept at 0.75", "curve": curve}


def register(store: Store, name: str, number: int, run: str, verdict: str = "PASS") -> None:
    """A release of the registry, as its record lies in a store."""
    ref = {"kind": "adapters", "name": name, "uri": f"{store.root}/adapters/{name}-0123456789ab", "digest": "d" * 64}
    record = {
        **{"name": name, "number": number, "adapter": ref, "base": ref | {"kind": "bases"}, "base_model": BASES[0]},
        **{"data": ref | {"kind": "datasets"}, "verdict": ref | {"kind": "verdicts"}, "verdict_says": verdict},
        **{
            "method": "lora",
            "recipe": {},
            "run_id": run,
            "override": None,
            "created": f"2026-11-{10 + number:02d}T10:00:00+00:00",
        },
        **{"base_revision": None, "git_commit": None},
    }
    store.write_json(f"releases/{name}/{number}/release.json", record)


def hostile(run: str) -> dict[str, Any]:
    """An adapter whose every text would like to be something else, and whose figures are none."""
    row = adapter("odd", run)
    target, *general = row["tasks"]
    flip = {"task": "reading_open", "kind": "lost", "moved": math.nan, "cut": False}
    spoken = ("prompt", "target", "base_text", "adapter_text")
    return row | {
        **{
            "name": HOSTILE,
            "recipe": TEXTS[2],
            "data_source": TEXTS[1],
            "reasons": TEXTS,
            "settings_json": "{not json",
        },
        **{"adapter_place": "javascript:window.broken=3", "base_model": "__proto__"},
        "flips": [flip | {"doc_id": text[:20]} | dict.fromkeys(spoken, text) for text in TEXTS],
        "tasks": [*general, target | {"delta": math.nan, "ci_low": math.inf, "task": HOSTILE}],
    }


def unfinished(run: str) -> dict[str, Any]:
    empty = {"verdict": None, "tasks": [], "flips": [], "curve": [], "pool": None}
    return adapter("failed", run) | {"status": "error", "error": "ran out of memory", **empty}


def in_nats_only(run: str) -> dict[str, Any]:
    """Its only general task is one of perplexity, so that there is no average in points."""
    row = adapter("reader", run)
    return row | {
        "pool": None,
        "tasks": [one for one in row["tasks"] if one["role"] == "target" or one["metric"] != "acc"],
    }
