"""All columns of some adapters as JSON text, which DuckDB writes: reading them into Python first would take minutes.

Read from the files themselves, some rows at a time, because curves and answers are most of what results hold; and of
small files many at a time, because a query over one costs as much as a query over fifty. A point of `curve` is {step,
loss, validation_loss, learning_rate, grad_norm, tokens, tokens_per_second, memory_bytes}, each null where it is
unknown: a validation has step and validation_loss only.
"""

import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tasks.reporting.queries_damage import fault_of
from tasks.reporting.queries_files import Files
from tasks.reporting.queries_tables import PLACES, SOURCE, UTC, WORKERS, patterns, turned
from tasks.reporting.results_schema import COLUMNS, TIME, Kind

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

Row = tuple[str, str, str]  # run id, name, all columns as JSON
AT_ONCE = 64  # rows; as many as a row group of a file has
NO_NUMBER = ("NaN", "Infinity")


class Piece(NamedTuple):
    """Rows that are read together: of files with the same columns, from one position to another, both included."""

    files: Sequence[Path]
    first: int
    last: int


def pieces(sizes: Sequence[tuple[Path, int, int]], files: Files) -> Iterator[Piece]:
    """All rows of the files of (path, rows, last position), in this order; at most AT_ONCE positions in a piece."""
    waiting: list[Path] = []
    rows = last = 0
    for path, count, highest in sizes:
        fits = rows + count <= AT_ONCE and highest < AT_ONCE
        if waiting and not (fits and files[path].columns == files[waiting[0]].columns):
            yield Piece(waiting, 0, last)
            waiting, rows, last = [], 0, 0
        if highest < AT_ONCE:
            waiting, rows, last = [*waiting, path], rows + count, max(last, highest)
            continue
        for start in range(0, highest + 1, AT_ONCE):
            yield Piece([path], start, min(highest, start + AT_ONCE - 1))
    if waiting:
        yield Piece(waiting, 0, last)


def details_of(
    connection: "DuckDBPyConnection", wanted: Iterator[Piece], files: Files, warnings: list[str], *, root: str
) -> Iterator[Row]:
    """(run_id, name, text) of these rows: all their columns, and what follows from them.

    A file that is damaged there is found by halves and told once in `warnings`; what cannot be read is left out.
    """
    damaged: set[Path] = set()

    def read(piece: Piece) -> list[Row]:
        with connection.cursor() as cursor:  # others may ask while these are read
            return list(_read(cursor, piece, files, warnings, damaged=damaged, root=root))

    with ThreadPoolExecutor(WORKERS) as threads:
        ahead: deque[Future[list[Row]]] = deque()
        for piece in wanted:
            ahead.append(threads.submit(read, piece))
            if len(ahead) > WORKERS:
                yield from ahead.popleft().result()
        for rows in ahead:
            yield from rows.result()


def _read(
    cursor: "DuckDBPyConnection", piece: Piece, files: Files, warnings: list[str], *, damaged: set[Path], root: str
) -> Iterator[Row]:
    import duckdb

    some = [path for path in piece.files if path not in damaged]
    if not some:
        return
    try:
        sql = _select(files[some[0]].columns, root)
        rows = cursor.execute(sql, [patterns(some), piece.first, piece.last]).fetchall()
    except duckdb.Error as error:
        if parts := _halves(piece._replace(files=some), splits_rows=isinstance(error, duckdb.OutOfMemoryException)):
            for part in parts:
                yield from _read(cursor, part, files, warnings, damaged=damaged, root=root)
        elif some[0] not in damaged:
            damaged.add(some[0])
            warnings.append(f"{files[some[0]].name}: details are left out: {fault_of(error, some[0])}")
        return
    for run_id, name, text in rows:
        yield run_id, name, without_nan(text)


def _halves(piece: Piece, *, splits_rows: bool) -> list[Piece]:
    """Of its files; of a single one of its rows, if there were too many for the memory; none if there are none."""
    if len(piece.files) > 1:
        half = len(piece.files) // 2
        return [piece._replace(files=some) for some in (piece.files[:half], piece.files[half:])]
    if splits_rows and piece.first < piece.last:
        middle = (piece.first + piece.last) // 2
        return [piece._replace(last=middle), piece._replace(first=middle + 1)]
    return []


def _select(there: frozenset[str], root: str) -> str:
    fields = {name: _value(name, kind) if name in there else "NULL" for name, kind in COLUMNS.items()}
    fields |= {"target": "figure_of_target", "worst": "figure_of_worst", "uris": _uris(root, there)}
    row = ", ".join(f"{name} := {value}" for name, value in fields.items())
    return f"""SELECT run_id, name, to_json(struct_pack({row})) FROM {SOURCE}
        JOIN figured ON filename = figured_file AND position = figured_position
        WHERE position BETWEEN ? AND ? ORDER BY filename, position"""


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
    uris["card"] = "figured_card"
    return f"struct_pack({', '.join(f'{role} := {uri}' for role, uri in uris.items())})"


def without_nan(text: str) -> str:
    """JSON has no NaN, and DuckDB writes it all the same: null instead. The words alone may stand in a text."""
    if not any(word in text for word in NO_NUMBER):
        return text
    return json.dumps(json.loads(text, parse_constant=lambda word: None), ensure_ascii=False)
