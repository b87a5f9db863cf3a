"""What the page reads, part by part: the answers of tasks/reporting/queries.py, made small and cut into pieces.

    fleet             every adapter, in columns; `part` says where its details are; `rivals` have one base and data
    adapters-K        details of some adapters, {"NAME@RUN": all its columns}
    tradeoff          learned and forgotten by row of the fleet, and the paths of cures
    heat, heat-K      tasks and rows; K-th piece of the rows' cells
    history, history-K  the names that were released; K-th piece of their releases
    bench             as queries.bench() has it

The page asks for a part when a view needs it: ten thousand adapters open as fast as ten.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tasks.reporting.page.shell import data_file

if TYPE_CHECKING:
    from tasks.reporting.queries import Results

Json = dict[str, Any]
Part = tuple[str, str]  # name, JSON
PIECE = 800_000  # bytes of a file that is loaded on demand
HEAT_ROWS = 400  # adapters in a piece of the heat map
FLEET = ("run_id", "name", "started", "recipe", "status", "method", "precision", "base_model", "data_source", "verdict")
COST = ("release", "newest", "adapter_bytes", "device_seconds", "alpha", "since_release")
TARGET = ("task", "unit", "n", "gain", "gain_low", "gain_high")
WORST = ("task", "unit", "n", "drop", "drop_low", "drop_high", "used")
POINT = ("row", "forgotten", "forgotten_low", "forgotten_high", "forgotten_of", "forgotten_unit", "forgotten_n")
STEP = ("kind", "scale", "share", "gain", "forgotten", "kept")


def parts_of(results: "Results", rows: Sequence[Json]) -> Iterator[Part]:
    """Every part of the fleet of these `rows`: the details of a large one are never in memory together."""
    piece_of: dict[str, int] = {}
    details = ((f"{name}@{run_id}", text) for run_id, name, text in results.details())
    for number, piece in enumerate(pieces(details)):
        piece_of |= dict.fromkeys(piece, number)
        yield f"adapters-{number}", joined(piece)
    at = {f"{row['name']}@{row['run_id']}": index for index, row in enumerate(rows)}
    fleet = [_fleet_row(row, piece_of) | {"rivals": group} for row, group in zip(rows, rivals(rows), strict=True)]
    yield "fleet", dumped(packed(fleet))
    yield "tradeoff", dumped(_tradeoff(results.tradeoff(), at))
    yield from _heat(results.heat_map(), at)
    yield from _history(results.history())
    yield "bench", dumped(results.bench())


def rivals(rows: Sequence[Json]) -> list[int]:
    """A number for each row: equal for those with the same base and data; who has an unknown one is alone."""
    groups: dict[Any, int] = {}
    made_from = [(row["base_digest"], row["data_digest"]) for row in rows]
    return [groups.setdefault(index if None in of else of, index) for index, of in enumerate(made_from)]


def pieces(texts: Iterable[tuple[str, str]]) -> Iterator[dict[str, str]]:
    """`texts` in dicts whose files have at most about PIECE bytes; what is added at the end changes only the last."""
    piece: dict[str, str] = {}
    size = 0
    for key, text in texts:
        grown = len(data_file(key, text))
        if piece and size + grown > PIECE:
            yield piece
            piece, size = {}, 0
        piece[key] = text
        size += grown
    if piece:
        yield piece


def joined(texts: Mapping[str, str]) -> str:
    """One JSON object of values that are JSON already."""
    return "{" + ",".join(f"{json.dumps(key, ensure_ascii=False)}:{text}" for key, text in texts.items()) + "}"


def dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def packed(rows: Sequence[Mapping[str, Any]]) -> Json:
    """Rows of equal keys as columns; texts that repeat stand once, in `words`."""
    columns = {}
    for key in rows[0] if rows else ():
        values = [_short(row[key]) for row in rows]
        columns[key] = _worded(values) if _repeats(values) else {"values": values}
    return {"length": len(rows), "columns": columns}


def _short(value: Any) -> Any:
    """Six significant digits are more than any figure here is known to."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _repeats(values: Sequence[Any]) -> bool:
    texts = [value for value in values if isinstance(value, str)]
    only_text = all(value is None or isinstance(value, str) for value in values)
    return only_text and len(set(texts)) < len(texts)


def _worded(values: Sequence[str | None]) -> Json:
    words = {word: index for index, word in enumerate(dict.fromkeys(one for one in values if one is not None))}
    return {"values": [None if one is None else words[one] for one in values], "words": list(words)}


def _fleet_row(row: Json, piece_of: Mapping[str, int]) -> Json:
    figures = {
        f"{role}.{key}": (row.get(role) or {}).get(key)
        for role, keys in (("target", TARGET), ("worst", WORST))
        for key in keys
    }
    part = piece_of.get(f"{row['name']}@{row['run_id']}")
    return {**{key: row.get(key) for key in (*FLEET, *COST)}, **figures, "part": part}


def _tradeoff(points: Sequence[Json], at: Mapping[str, int]) -> Json:
    shown = [
        {**point, "row": at[f"{point['name']}@{point['run_id']}"], "forgotten_n": _forgotten_n(point)}
        for point in points
    ]
    paths = {
        one["row"]: [{key: _short(step.get(key)) for key in STEP} for step in one["path"]]
        for one in shown
        if one.get("path")
    }
    return {"points": packed([{key: one.get(key) for key in POINT} for one in shown]), "paths": paths}


def _forgotten_n(point: Json) -> int | None:
    """Of an average the tasks, of a task its documents."""
    if point["forgotten_of"] == "pool":
        return point["pool"]["n_tasks"]  # type: ignore[no-any-return]
    return (point["worst"] or {}).get("n")


def _heat(found: Json, at: Mapping[str, int]) -> Iterator[Part]:
    tasks, cells = found["tasks"], found["cells"]
    grid: list[list[Any]] = [[None] * len(tasks) for _ in found["adapters"]]
    keys = ("gain", "gain_low", "gain_high", "n", "margin", "verdict")
    figures = zip(*(cells[key] for key in keys), strict=True)
    for adapter, task, figure in zip(cells["a"], cells["t"], figures, strict=True):
        grid[adapter][task] = [_short(value) for value in figure]
    rows = [at[f"{one['name']}@{one['run_id']}"] for one in found["adapters"]]
    yield "heat", dumped({"tasks": tasks, "rows": rows, "chunk": HEAT_ROWS})
    for number, start in enumerate(range(0, len(grid), HEAT_ROWS)):
        yield f"heat-{number}", dumped(grid[start : start + HEAT_ROWS])


def _history(found: Mapping[str, Sequence[Json]]) -> Iterator[Part]:
    names: Json = {}
    texts = ((name, dumped(releases)) for name, releases in sorted(found.items()) if releases)
    for number, piece in enumerate(pieces(texts)):
        yield f"history-{number}", joined(piece)
        for name in piece:
            last = found[name][-1]
            standing = sorted({channel for one in found[name] for channel in one.get("channels") or ()})
            names[name] = {
                **{"chunk": number, "releases": len(found[name]), "newest": last.get("created")},
                "channels": ", ".join(standing),
            }
    yield "history", dumped({"names": names})
