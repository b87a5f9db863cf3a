"""All columns of some adapters as JSON text, which DuckDB writes: reading them into Python first would take minutes.

Read from the files themselves, some rows at a time, because curves and answers are most of what results hold.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.reporting.queries_tables import CARD, SOURCE, UTC, patterns, turned
from tasks.reporting.results_schema import COLUMNS, TIME, Kind

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

AT_ONCE = 256  # rows
PLACES = ("adapter", "merged", "gguf", "verdict", "data", "base")
NO_NUMBER = ("NaN", "Infinity")
FIGURED = """SELECT run_id AS figured_run, name AS figured_name, target.figure AS figure_of_target,
    worst.figure AS figure_of_worst FROM adapter LEFT JOIN target USING (id) LEFT JOIN worst USING (id)"""


def details_of(
    connection: "DuckDBPyConnection",
    file: Path,
    positions: tuple[int, int],
    warnings: list[str],
    *,
    there: frozenset[str],
    root: str,
    only: str | None = None,
) -> Iterator[tuple[str, str, str]]:
    """(run_id, name, text) of the rows of a file from one position to another, both included. It has columns `there`.

    All columns, and what follows from them; or `only` one, of the rows that have it. A file that is damaged there is
    told in `warnings`, and its other rows are left out.
    """
    import duckdb

    first, last = positions
    cursor = connection.cursor()  # others may ask while this one is read
    try:
        chosen = {only: COLUMNS[only]} if only else COLUMNS
        where = "true" if only is None else f"{only} IS NOT NULL" if only in there else "false"
        fields = {name: _value(name, kind) if name in there else "NULL" for name, kind in chosen.items()}
        if only is None:
            fields |= {"target": "figure_of_target", "worst": "figure_of_worst", "uris": _uris(root, there)}
        row = ", ".join(f"{name} := {value}" for name, value in fields.items())
        for start in range(first, last + 1, AT_ONCE):
            rows = cursor.execute(
                f"""SELECT run_id, name, to_json(struct_pack({row}))
                FROM {SOURCE} JOIN ({FIGURED}) ON run_id = figured_run AND name = figured_name
                WHERE position BETWEEN ? AND ? AND {where} ORDER BY position""",
                [patterns([file]), start, min(last, start + AT_ONCE - 1)],
            ).fetchall()
            for run_id, name, text in rows:
                yield run_id, name, _without_nan(text)
    except duckdb.Error as error:
        warnings.append(f"{file}: details are left out: {str(error).splitlines()[0]}")
    finally:
        cursor.close()


def _value(name: str, kind: Kind) -> str:
    if kind == TIME:
        return f"strftime({name}, '{UTC}')"
    if name != "tasks":
        return name
    more = ", ".join(f"{figure} := {sql}" for figure, sql in turned("t").items())
    return f"list_transform(tasks, lambda t: struct_insert(t, {more}))"


def _uris(root: str, there: frozenset[str]) -> str:
    quoted = root.replace("'", "''")
    places = {role: f"{role}_place" for role in PLACES}
    uris = {role: f"'{quoted}/' || {place}" if place in there else "NULL" for role, place in places.items()}
    uris["summary"] = f"'{quoted}/runs/' || run_id || '/summary.json'"
    uris["card"] = CARD if "published" in there else "NULL"
    return f"struct_pack({', '.join(f'{role} := {uri}' for role, uri in uris.items())})"


def _without_nan(text: str) -> str:
    """JSON has no NaN, and DuckDB writes it all the same: null instead. The words alone may stand in a text."""
    if not any(word in text for word in NO_NUMBER):
        return text
    return json.dumps(json.loads(text, parse_constant=lambda word: None), ensure_ascii=False)
