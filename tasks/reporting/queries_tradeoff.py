"""Learned against forgotten: a point for each adapter, and the path that a cure walked.

Which of them nobody beats depends on whom one looks at: the page draws the Pareto front of those it shows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Json = dict[str, Any]


def tradeoff_of(rows: Sequence[Json], cures: Mapping[tuple[str, str], Json]) -> list[Json]:
    """`rows` with "forgotten" (by the average of the general tasks, or else the worst of them) and "path"."""
    points = []
    for row in rows:
        point = {key: row[key] for key in ("run_id", "name", "method", "verdict", "status", "target", "worst", "pool")}
        point.update(_forgotten(row))
        point["path"] = _path(cures.get((row["run_id"], row["name"])), point)
        points.append(point)
    return points


def _forgotten(row: Json) -> Json:
    pool, worst = row["pool"], row["worst"]
    values: tuple[Any, ...] = (None,) * 5
    if pool and pool["drop"] is not None:
        values = pool["drop"], pool["ci_low"], pool["ci_high"], "pool", "points"
    elif worst:
        values = worst["drop"], worst["drop_low"], worst["drop_high"], worst["task"], worst["unit"]
    names = ("forgotten", "forgotten_low", "forgotten_high", "forgotten_of", "forgotten_unit")
    return dict(zip(names, values, strict=True))


def _path(cure: Json | None, point: Json) -> list[Json]:
    """The candidates of a cure in the units of the point, in the order in which they were judged."""
    if not cure:
        return []
    kept = cure["kept"] or {}
    grows = point["target"]["higher_is_better"] is not False
    return [
        {
            **{key: one[key] for key in ("name", "kind", "scale", "share", "verdict")},
            **_gain(one, grows),
            "forgotten": _of_candidate(one, point),
            "kept": bool(kept) and all(kept.get(key) == one[key] for key in ("kind", "scale", "share")),
        }
        for one in cure["curve"] or []
    ]


def _gain(one: Json, grows: bool) -> Json:
    delta, low, high = (one[f"target_{key}"] for key in ("delta", "ci_low", "ci_high"))
    if not grows:
        delta, low, high = _minus(delta), _minus(high), _minus(low)
    return {"gain": delta, "gain_low": low, "gain_high": high}


def _of_candidate(one: Json, point: Json) -> float | None:
    if point["forgotten_of"] == "pool":
        return one["pool_drop"]
    found = next((task for task in one["general"] or [] if task["task"] == point["forgotten_of"]), None)
    if found is None:
        return None
    return found["delta"] if point["worst"]["higher_is_better"] is False else _minus(found["delta"])


def _minus(value: float | None) -> float | None:
    return None if value is None else -value
