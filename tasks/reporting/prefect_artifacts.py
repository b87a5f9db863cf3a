"""What a run leaves in Prefect's UI: a table with one row an adapter, and a link to its summary.

The keys are the recipe's, so that the UI shows how its runs went one after another.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prefect.artifacts import create_link_artifact, create_table_artifact

from infra.redaction import without_secrets
from tasks.reporting.figures import change, interval, is_fraction

LONGEST = 400  # characters of an error where it is only shown; the store has it whole


def leave_artifacts(summary: Mapping[str, Any], warn: Callable[..., None]) -> None:
    """Table and link. They only show what the store has, so nothing that goes wrong with them fails a run."""
    try:
        recipe, run = summary["recipe"]["name"], summary["run_id"]
        create_table_artifact(
            table=[adapter_row(adapter) for adapter in summary["adapters"]],
            key=artifact_key("adapters", recipe),
            description=f"Recipe {recipe}, run {run}. Differences from the base in points, losses in nats.",
        )
        create_link_artifact(
            link=summary_link(summary),
            link_text=f"summary.json of run {run}",
            key=artifact_key("summary", recipe),
            description=f"`tunefleet flips {run} --store {summary['store']}` shows the documents that changed.",
        )
    except Exception as error:  # noqa: BLE001 - whatever it was, the run is finished and its summary is kept
        warn("the run's table is not shown in Prefect: %s", in_a_line(f"{type(error).__name__}: {error}"))


def adapter_row(adapter: Mapping[str, Any]) -> dict[str, str]:
    """The adapter in six short texts; empty where there is nothing to tell."""
    return {
        "adapter": adapter["name"],
        "verdict": adapter["verdict"] or adapter["status"],
        "target": _target(adapter),
        "worst general task": _worst(adapter),
        "release": adapter["release"] or "",
        "error": in_a_line(adapter["error"] or ""),
    }


def in_a_line(text: str) -> str:
    """What a library wrote, fit to be shown; secrets go first, since half of one would not be known for what it is."""
    line = " ".join(without_secrets(text).split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


def _target(adapter: Mapping[str, Any]) -> str:
    """The gain on the task that decides, with its interval."""
    task = next((one for one in adapter["tasks"] if one["role"] == "target" and one["decides"]), None)
    if task is None:
        return ""
    fraction = is_fraction(task["metric"])
    return f"{change(task['delta'], fraction)} ({interval(task['ci_low'], task['ci_high'], fraction)})"


def _worst(adapter: Mapping[str, Any]) -> str:
    """The general task that used up most of what it was allowed to drop."""
    general = [one for one in adapter["tasks"] if one["role"] == "general" and one["decides"]]
    if not general:
        return ""
    task = max(general, key=_used)
    fraction = is_fraction(task["metric"])
    return f"{task['task']} {change(task['delta'], fraction)} ({task['verdict']})"


def _used(task: Mapping[str, Any]) -> float:
    """The drop in units of its margin: tasks have different ones, and losses are no fractions."""
    drop = -task["delta"] if task["higher_is_better"] else task["delta"]
    return drop / task["margin"] if task["margin"] else drop


def summary_link(summary: Mapping[str, Any]) -> str:
    """A URL of the summary's file, as the store has it: file:// or s3://."""
    place = f"{summary['store']}/runs/{summary['run_id']}/summary.json"
    return place if "://" in place else Path(place).absolute().as_uri()


def artifact_key(what: str, name: str) -> str:
    """Prefect's artifact keys take lower-case letters, digits and dashes."""
    kept = "".join(mark if mark.isascii() and mark.isalnum() else "-" for mark in name.lower())
    return f"{what}-{kept}"
