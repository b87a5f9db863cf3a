"""How many documents flip, as earlier runs on the same base measured it: from the verdicts in the store.

An adapter that failed a general task is left out of that task's rate. A plan asks what it takes to clear an adapter
that forgot nothing, and the flips of one that forgot say nothing about that.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from infra.storage import Store

LOOKED_AT = 500  # artifacts of a kind
TRAINED = ("adapters", "models")


@dataclass(frozen=True)
class Measured:
    """Of one task: means over `adapters` verdicts. `sd` is of the scores' differences, None where none states it."""

    adapters: int
    disagreement: float  # share of documents that flip, 0 to 1
    sd: float | None


def measured_by_task(store: Store, base: str) -> dict[str, Measured]:
    """{task: what the verdicts on adapters of the base with digest `base` say}; empty where there are none."""
    known = {
        name: manifest
        for kind in TRAINED
        for name, manifest in _manifests(store, kind)
        if manifest.get("upstream", {}).get("base") == base
    }
    ours = {manifest.get("digest") for manifest in known.values()}
    latest: dict[tuple[str, str], dict[str, Any]] = {}  # by task and adapter: judged again, it counts once
    for folder, _ in sorted(_manifests(store, "verdicts"), key=lambda one: str(one[1].get("created"))):
        verdict = store.read_json(f"verdicts/{folder}/verdict.json")
        if not isinstance(verdict, dict) or verdict.get("adapter_digest") not in ours:
            continue
        for task in verdict.get("tasks", []):
            latest[task["task"], verdict["adapter_digest"]] = task
    by_task = defaultdict(list)
    for (name, _), task in latest.items():
        if task["role"] == "target" or task["verdict"] != "FAIL":
            by_task[name].append(task)
    return {name: _mean(tasks) for name, tasks in by_task.items()}


def _mean(tasks: list[dict[str, Any]]) -> Measured:
    spreads = [sd for task in tasks if (sd := task.get("sd")) is not None]
    return Measured(
        adapters=len(tasks),
        disagreement=fmean((task["flips"]["lost"] + task["flips"]["gained"]) / task["n"] for task in tasks),
        sd=fmean(spreads) if spreads else None,
    )


def _manifests(store: Store, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(folder, manifest) of the finished artifacts of a kind."""
    try:
        folders = store.fs.ls(f"{store.root}/{kind}", detail=False)[:LOOKED_AT]
    except FileNotFoundError:
        return
    for folder in folders:
        name = folder.rstrip("/").rpartition("/")[2]
        if manifest := store.read_json(f"{kind}/{name}/manifest.json"):
            yield name, manifest
