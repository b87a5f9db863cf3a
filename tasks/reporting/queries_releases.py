"""Releases of the registry beside what their runs measured: history, and what changed since the last one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from infra.errors import TunefleetError
from infra.storage import Store
from tasks.reporting.queries_registry import Registry

Json = dict[str, Any]


@dataclass(frozen=True)
class Release:
    """What the registry says of one release."""

    name: str
    number: int
    run_id: str
    created: str
    verdict: str
    override: str | None  # the reason
    channels: tuple[str, ...]  # that stand at it
    published: tuple[str, ...]  # where

    @property
    def label(self) -> str:
        return f"{self.name}@v{self.number}"


def standing_releases(store: Store, warnings: list[str]) -> dict[str, list[Release]]:
    """{name: its releases by number}; a name whose records cannot be read is told and left out."""
    from tasks.registry.records import current, publications, releases

    found = {}
    registry = Registry(store)
    for name in registry.names():
        try:
            records = releases(registry, name)
            channels = registry.list_names(f"channels/{name}")
            stands = {channel: current(registry, name, channel) for channel in channels}
            found[name] = [
                Release(
                    name=record.name,
                    number=record.number,
                    run_id=record.run_id,
                    created=record.created.replace("+00:00", "Z"),
                    verdict=record.verdict_says,
                    override=record.override.reason if record.override else None,
                    channels=tuple(channel for channel, number in stands.items() if number == record.number),
                    published=tuple(dict.fromkeys(one.published.uri for one in publications(registry, record))),
                )
                for record in records
            ]
        except (TunefleetError, ValidationError, OSError, KeyError, TypeError, ValueError) as error:
            warnings.append(f"releases of {name} are left out: {str(error).splitlines()[0]}")
    return found


def history_of(
    releases: Mapping[str, Sequence[Release]], measured: Mapping[tuple[str, str], list[Json]]
) -> dict[str, list[Json]]:
    """{name: [{"release", "number", ..., "tasks"}]}."""
    return {
        name: [
            {
                **{"release": one.label, "number": one.number, "created": one.created, "run_id": one.run_id},
                **{"verdict": one.verdict, "override": one.override},
                **{"channels": list(one.channels), "published": list(one.published)},
                "tasks": measured.get((one.run_id, name), []),
            }
            for one in some
        ]
        for name, some in releases.items()
    }


def since_release(
    row: Json,
    releases: Sequence[Release],
    by_row: Mapping[tuple[str, str], Json],
    verdicts: Mapping[int, Mapping[str, str]],
) -> Json | None:
    """What changed from the last release that an earlier run made; None if there is none.

    `by_row` are the fleet's rows by run and name, `verdicts` those of their tasks by id. Changes of a figure are null
    where the task is another one or the release's run has no results.
    """
    earlier = [one for one in releases if one.run_id < row["run_id"]]
    if not earlier:
        return None
    last = earlier[-1]
    before = by_row.get((last.run_id, last.name), {})
    old, new = verdicts.get(before.get("id", -1), {}), verdicts.get(row["id"], {})
    worst, worst_before = row["worst"], before.get("worst")
    same_worst = bool(worst and worst_before and worst["task"] == worst_before["task"])
    return {
        **{"release": last.label, "run_id": last.run_id, "verdict": last.verdict},
        "gain_before": (before.get("target") or {}).get("gain"),
        "gain_change": _change(row["target"], before.get("target"), "gain"),
        "worst_task": worst["task"] if worst else None,
        "worst_before": worst_before["gain"] if same_worst and worst_before else None,
        "worst_change": _change(worst, worst_before, "gain"),
        "tasks_changed": [
            {"task": task, "before": old.get(task), "after": new.get(task)}
            for task in sorted({*old, *new})
            if old and old.get(task) != new.get(task)
        ],
    }


def _change(after: Json | None, before: Json | None, figure: str) -> float | None:
    if not after or not before or after["task"] != before["task"]:
        return None
    values = after[figure], before[figure]
    return None if None in values else values[0] - values[1]
