"""What was learned against what was forgotten, for every candidate of a cure: the curve of summary.json as a table."""

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from tasks.reporting.figures import VERDICT_COLOURS, change, confidence, interval, is_fraction

KEPT = "kept ->"


def cure_table(adapter: Mapping[str, Any]) -> Table:
    """One row a candidate, in the order tried; the one that took the adapter's place is marked."""
    kept, curve = adapter["cure"]["kept"], adapter["cure"]["curve"]
    metrics = {task["task"]: task["metric"] for task in adapter["tasks"]}
    learned = next((task["metric"] for task in adapter["tasks"] if task["role"] == "target" and task["decides"]), "")
    names = list(dict.fromkeys(task["task"] for point in curve for task in point["general"]))
    table = Table(title="Cure: learned against forgotten", title_justify="left", box=None, padding=(0, 1))
    table.add_column("", no_wrap=True)
    table.add_column("candidate", overflow="fold")
    for column in ("learned", "interval", "general, on average", *map(escape, names)):
        table.add_column(column, justify="right", overflow="fold")
    table.add_column("verdict")
    for point in curve:
        target, fraction = point["target"], is_fraction(learned)
        by_task = {task["task"]: task for task in point["general"]}
        table.add_row(
            *("" if kept is None or not _is(kept, point) else f"[green]{KEPT}[/]", _named(point)),
            *(change(target["delta"], fraction), _interval(point, fraction)),
            "" if point["pool"] is None else change(-point["pool"]["drop"], True),
            *(_general(by_task.get(name), is_fraction(metrics.get(name, ""))) for name in names),
            f"[{VERDICT_COLOURS[point['verdict']]}]{point['verdict']}[/]",
        )
    return table


def _is(kept: Mapping[str, Any], point: Mapping[str, Any]) -> bool:
    return all(kept[key] == point[key] for key in ("kind", "scale", "share"))


def _named(point: Mapping[str, Any]) -> str:
    if point["kind"] == "replay":
        return f"replay, share {point['share']:g}"
    return "as trained" if point["scale"] == 1 else f"scale {point['scale']:g}"


def _interval(point: Mapping[str, Any], fraction: bool) -> str:
    """With its confidence: candidates share alpha, so that each has a smaller level than the adapter as trained."""
    of = "" if point.get("alpha") is None else f" ({confidence(point['alpha'])})"
    return interval(point["target"]["ci_low"], point["target"]["ci_high"], fraction) + of


def _general(task: Mapping[str, Any] | None, fraction: bool) -> str:
    """The change, with a mark where the task fails."""
    if task is None:
        return ""
    changed = change(task["delta"], fraction)
    return f"[red]{changed} FAIL[/]" if task["verdict"] == "FAIL" else changed
