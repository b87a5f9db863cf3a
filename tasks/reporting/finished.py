"""The finished runs of a store: those that left a summary."""

import difflib
from typing import Any

from infra.errors import RequestError
from infra.storage import Store

LATEST = "latest"
SHOWN_RUNS = 5  # named in a message


def read_run(store: Store, run: str) -> dict[str, Any]:
    """The summary of a finished run, by its id or `latest`; RequestError names near ones if there is none."""
    runs = finished_runs(store)
    if not runs:
        raise RequestError(f"{store.root} holds no finished run; name the run's store with --store.")
    if run == LATEST:
        run = runs[-1]
    summary = store.read_json(f"runs/{run}/summary.json") if run in runs else None
    if summary is None:
        near = difflib.get_close_matches(run, runs, n=3, cutoff=0.8)
        there = f"near ones: {', '.join(near)}" if near else f"the last ones: {', '.join(runs[-SHOWN_RUNS:])}"
        raise RequestError(f"no finished run {run!r} in {store.root}; {there}; or take {LATEST!r}.")
    return dict(summary)


def finished_runs(store: Store) -> list[str]:
    """Ids of the finished runs in the order of time, which is theirs; others have logs at most, and no summary."""
    files = (file.split("/")[-3:] for file in store.fs.find(f"{store.root}/runs"))
    return sorted(run for runs, run, name in files if runs == "runs" and name == "summary.json")
