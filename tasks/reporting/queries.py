"""What the results of all runs of a store answer, as plain JSON values. docs/RESULTS.md lists the keys.

with open_results(store) as results:
    results.fleet()
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.storage import Store
from tasks.reporting.queries_bench import needed_by_task, noise_floor
from tasks.reporting.queries_details import details_of, pieces, without_nan
from tasks.reporting.queries_files import Files, result_files
from tasks.reporting.queries_releases import Release, history_of, since_release, standing_releases
from tasks.reporting.queries_tables import FIGURES, PLACES, tables
from tasks.reporting.queries_tradeoff import tradeoff_of

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

Json = dict[str, Any]
ROW = (
    *("run_id", "name", "started", "recipe", "status", "method", "precision", "base_model", "base_revision"),
    *("base_digest", "data_source", "verdict", "error", "release", "digest", "newest"),
    *("trainable_params", "total_params", "adapter_bytes", "device_seconds", "train_seconds", "tokens_per_second"),
    *("peak_memory_bytes", "alpha"),
)
DATA = "right(data_place, 12)"  # equal rows have one digest, whatever the adapter is called
CELL = ("n", "gain", "gain_low", "gain_high", "margin", "used", "verdict")


@contextmanager
def open_results(store: Store) -> Iterator["Results"]:
    """All results of a store, as they are now."""
    files, warnings = result_files(store)
    releases = standing_releases(store, warnings)
    published = [(one.run_id, one.name, one.published[0]) for of in releases.values() for one in of if one.published]
    with tables(files, warnings, published) as connection:
        yield Results(store, connection, files, releases, warnings=warnings)


class Results:
    """Answers; `warnings` tells the files and releases that were left out."""

    def __init__(
        self,
        store: Store,
        connection: "DuckDBPyConnection",
        files: Files,
        releases: dict[str, list[Release]],
        *,
        warnings: list[str],
    ):
        self.store = store
        self.warnings = warnings
        self._connection = connection
        self._files = files
        self._releases = releases

    def fleet(self) -> list[Json]:
        """Every adapter of every run, the newest run first."""
        rows = self._rows(
            f"""SELECT id, {", ".join(ROW)}, {DATA} AS data_digest,
                {", ".join(f"{role}_place" for role in PLACES)}, card_uri,
                target.figure AS target, worst.figure AS worst
            FROM adapter LEFT JOIN target USING (id) LEFT JOIN worst USING (id) ORDER BY run_id DESC, position"""
        )
        labels = {(one.run_id, one.name): one.label for of in self._releases.values() for one in of}
        by_row = {(row["run_id"], row["name"]): row for row in rows}
        for row in rows:
            row["release"] = labels.get((row["run_id"], row["name"]), row["release"])
            row["since_release"] = since_release(row, self._releases.get(row["name"], []), by_row, self._verdicts)
        for row in rows:
            del row["id"]
            places = {role: row.pop(f"{role}_place") for role in PLACES}
            row.update({f"{role}_uri": uri for role, uri in self._uris(places, row["run_id"]).items()})
        return rows

    def tradeoff(self) -> list[Json]:
        """What was learned against what was forgotten, of the newest row of each name."""
        return tradeoff_of(
            self._rows(
                """SELECT run_id, name, method, verdict, status, base_model, precision, file, position,
                target.figure AS target, worst.figure AS worst, pool
            FROM adapter JOIN target USING (id) LEFT JOIN worst USING (id)
            WHERE newest ORDER BY run_id DESC, position"""
            ),
            self._paths(),
        )

    def heat_map(self) -> Json:
        """Adapter by general task, of the newest row of each name."""
        wanted = "FROM task JOIN adapter USING (id) WHERE newest AND role = 'general' AND decides"
        names = self._rows(
            f"SELECT run_id, name FROM adapter WHERE id IN (SELECT id {wanted}) ORDER BY run_id DESC, position"
        )
        kinds = self._rows(f"SELECT DISTINCT task, task.metric, unit {wanted} ORDER BY task, task.metric")
        adapters = {(one["run_id"], one["name"]): index for index, one in enumerate(names)}
        tasks = {(one["task"], one["metric"]): index for index, one in enumerate(kinds)}
        cells: dict[str, list[Any]] = {key: [] for key in ("a", "t", *CELL)}
        found = self._connection.execute(
            f"SELECT run_id, name, task, metric, {', '.join(f'task.{key}' for key in CELL)} {wanted}"
        ).fetchall()
        for run_id, name, task, metric, *values in found:
            for key, value in zip(cells, (adapters[run_id, name], tasks[task, metric], *values), strict=True):
                cells[key].append(value)
        return {"tasks": kinds, "adapters": names, "cells": cells}

    def details(self) -> Iterator[tuple[str, str, str]]:
        """(run_id, name, JSON text of all its columns) of every adapter, the oldest run first."""
        found = self._connection.execute(
            "SELECT file, count(*), max(position) FROM adapter GROUP BY file ORDER BY file"
        ).fetchall()
        wanted = pieces([(Path(file), count, last) for file, count, last in found], self._files)
        yield from details_of(self._connection, wanted, self._files, self.warnings, root=self.store.root)

    def history(self) -> dict[str, list[Json]]:
        """{name: its releases by number, each with what its run measured}."""
        keys = [(one.run_id, one.name) for of in self._releases.values() for one in of]
        return history_of(self._releases, self._measured(keys))

    def bench(self) -> Json:
        """What the general tasks can see: documents needed, the noise floor, the self-tests."""
        tasks = self._rows(
            """SELECT base_model, precision, task, task.metric, unit, kind, max(n) AS n, count(DISTINCT id) AS adapters,
                median((lost + gained) / n) FILTER (task.verdict <> 'FAIL' AND kind = 'right/wrong') AS disagreement,
                median(sd) FILTER (task.verdict <> 'FAIL') AS sd, median(alpha) AS alpha, median(margin) AS margin
            FROM task JOIN adapter USING (id) WHERE newest AND role = 'general' AND decides AND n > 0
            GROUP BY ALL ORDER BY base_model, precision, task"""
        )
        runs = self._rows(
            "SELECT run_id, started, base_model, run FROM adapter WHERE run IS NOT NULL ORDER BY run_id DESC, position"
        )
        told = [(one, json.loads(without_nan(one.pop("run")))["self_tests"] or []) for one in runs]
        tests = [{**one, **test} for one, tests in told for test in tests]
        return {"tasks": needed_by_task(tasks), "self_tests": tests, "noise_floor": noise_floor(tests)}

    @cached_property
    def _verdicts(self) -> dict[int, dict[str, str]]:
        """{id: {task: verdict}} of every adapter that has a release of its name."""
        found: dict[int, dict[str, str]] = {}
        names = list(self._releases)
        rows = self._rows(
            """SELECT id, task, task.verdict FROM task JOIN adapter USING (id)
            WHERE name IN (SELECT unnest(?::VARCHAR[]))""",
            [names],
        )
        for row in rows:
            found.setdefault(row["id"], {})[row["task"]] = row["verdict"]
        return found

    def _measured(self, keys: list[tuple[str, str]]) -> dict[tuple[str, str], list[Json]]:
        """{(run id, name): its tasks}."""
        figures = ", ".join(f"task.{key}" for key in ("role", *FIGURES))
        found: dict[tuple[str, str], list[Json]] = {}
        rows = self._rows(
            f"""SELECT run_id, name, {figures} FROM task JOIN adapter USING (id)
            WHERE (run_id, name) IN (SELECT unnest(?::VARCHAR[]), unnest(?::VARCHAR[])) ORDER BY id, role DESC, task""",
            [[run_id for run_id, _ in keys], [name for _, name in keys]],
        )
        for row in rows:
            found.setdefault((row.pop("run_id"), row.pop("name")), []).append(row)
        return found

    def _paths(self) -> dict[tuple[str, str], Json]:
        """{(run id, name): its cure} of those that a cure was tried on."""
        rows = self._rows("SELECT run_id, name, cure FROM adapter WHERE newest AND cure IS NOT NULL")
        return {(row["run_id"], row["name"]): json.loads(without_nan(row["cure"])) for row in rows}

    def _uris(self, places: Json, run_id: str) -> Json:
        uris = {role: f"{self.store.root}/{place}" if place else None for role, place in places.items()}
        return {**uris, "summary": f"{self.store.root}/runs/{run_id}/summary.json"}

    def _rows(self, sql: str, values: list[Any] | None = None) -> list[Json]:
        found = self._connection.execute(sql, values or [])
        names = [column[0] for column in found.description or []]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]
