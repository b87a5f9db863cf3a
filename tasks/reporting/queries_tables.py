"""The light columns of all results as tables of an in-memory DuckDB; answers, curves and rows stay in the files.

    adapter   id, file, newest (of its name), every column that is no list, and `run` and `cure` as JSON text
    task      id, and a row for each task with its figures turned: gain (more is better), drop (more is worse), used
    target, worst   id and the figures of the target that decides, and of the general task that used up most margin
    figured   both and the card by the place of their row, for whoever reads the files

Loading reads each file once, many at a time. One that turns out to be damaged inside is found by halves, left out and
told.
"""

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.reporting.queries_damage import fault_of
from tasks.reporting.queries_files import Files
from tasks.reporting.results_schema import COLUMNS, FLOAT, INT, TASK, TEXT, TIME

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MEMORY = "500MB"  # of DuckDB's; beyond it spills into a temporary folder
AT_ONCE = 128  # files that are read together
WORKERS = 2  # queries at a time; each takes its share of the memory
UTC = "%Y-%m-%dT%H:%M:%SZ"
LIGHT = [
    name for name, kind in COLUMNS.items() if isinstance(kind, str) and name not in ("settings_json", "versions_json")
]
SQL_TYPES = {TEXT: "VARCHAR", INT: "BIGINT", FLOAT: "DOUBLE", "bool": "BOOLEAN", TIME: "VARCHAR"}
SOURCE = "read_parquet(?, filename = true, hive_partitioning = false)"  # key=value in a path is no column
PLACES = ("adapter", "merged", "gguf", "verdict", "data", "base")  # roles whose place has a column
FIGURES = (
    *("task", "metric", "unit", "n", "base", "adapter", "gain", "gain_low", "gain_high", "drop", "drop_low"),
    *("drop_high", "margin", "verdict", "over", "used", "higher_is_better"),
)
FIGURE = f"struct_pack({', '.join(f'{name} := {name}' for name in FIGURES)})"


def turned(task: str) -> dict[str, str]:
    """{figure: SQL} of the struct or table `task`: of a loss less is better, so its difference is turned."""
    grows = f"coalesce({task}.higher_is_better, true)"
    delta, low, high = (f"{task}.{name}" for name in ("delta", "ci_low", "ci_high"))
    drop = f"if({grows}, -{delta}, {delta})"
    return {
        "unit": f"if({task}.metric = 'nll_per_token', 'nats', 'points')",  # as tasks/reporting/figures.py
        "gain": f"if({grows}, {delta}, -{delta})",
        "gain_low": f"if({grows}, {low}, -{high})",
        "gain_high": f"if({grows}, {high}, -{low})",
        "drop": drop,
        "drop_low": f"if({grows}, -{high}, {low})",
        "drop_high": f"if({grows}, -{low}, {high})",
        "used": f"if({task}.margin > 0, {drop} / {task}.margin, {drop})",
    }


def card(place: str) -> str:
    """SQL of where the card is at `place`, SQL of where files were published: a page shows it, a folder has it."""
    return f"if({place} LIKE 'http%', {place}, rtrim({place}, '/') || '/README.md')"


@contextmanager
def tables(
    files: Files, warnings: list[str], published: Sequence[tuple[str, str, str]] = ()
) -> Iterator["DuckDBPyConnection"]:
    """A connection with these tables; files that cannot be read are told in `warnings`.

    `published` are (run id, name, place) of those that were sent there later, which their own run does not know.
    """
    import duckdb

    with tempfile.TemporaryDirectory(prefix="tunefleet-results-") as spill, duckdb.connect(":memory:") as connection:
        for setting, value in (
            *(("memory_limit", MEMORY), ("temp_directory", spill), ("TimeZone", "UTC")),
            *(("threads", "1"), ("enable_external_file_cache", "false")),  # own threads, a query each, are quicker
            *(("autoinstall_known_extensions", "false"), ("enable_progress_bar", "false")),
        ):
            connection.execute(f"SET {setting} = '{value}'")
        _create(connection)
        with ThreadPoolExecutor(WORKERS) as threads:
            for told in threads.map(lambda some: _load(connection, some, files), _batches(files)):
                warnings += told
        _finish(connection, published)
        yield connection


def _create(connection: "DuckDBPyConnection") -> None:
    columns = ", ".join(f"{name} {SQL_TYPES[COLUMNS[name]]}" for name in LIGHT)
    pool = ", ".join(f"{name} {SQL_TYPES[kind]}" for name, kind in COLUMNS["pool"].items())
    connection.execute("CREATE SEQUENCE ids")
    connection.execute(
        "CREATE TABLE adapter (id BIGINT DEFAULT nextval('ids'), "
        f"file VARCHAR, {columns}, pool STRUCT({pool}), card_uri VARCHAR, run VARCHAR, cure VARCHAR)"
    )
    tasks = ", ".join(f"{name} {SQL_TYPES[kind]}" for name, kind in TASK.items())
    connection.execute(f"CREATE TABLE raw_task (file VARCHAR, position BIGINT, {tasks})")


def _batches(files: Files) -> Iterator[list[Path]]:
    """Files with the same columns; older ones have fewer."""
    alike: dict[frozenset[str], list[Path]] = defaultdict(list)
    for path, file in files.items():
        alike[file.columns].append(path)
    for some in alike.values():
        yield from (some[start : start + AT_ONCE] for start in range(0, len(some), AT_ONCE))


def _load(connection: "DuckDBPyConnection", some: Sequence[Path], files: Files) -> list[str]:
    """Some files with the same columns; what was left out of them."""
    import duckdb

    try:
        with connection.cursor() as own:  # a transaction of its own, which ends with it
            own.execute("BEGIN")
            nameless = _insert(own, some, files[some[0]].columns)
            own.execute("COMMIT")
    except duckdb.Error as error:
        if len(some) == 1:
            return [f"{files[some[0]].name} is left out: {fault_of(error, some[0])}"]
        half = len(some) // 2
        return [*_load(connection, some[:half], files), *_load(connection, some[half:], files)]
    return [
        f"{files[Path(file)].name}: {count} rows without run_id, name or position are left out"
        for file, count in nameless
    ]


def _insert(connection: "DuckDBPyConnection", some: Sequence[Path], there: frozenset[str]) -> list[tuple[str, int]]:
    """Rows of these files; (file, number of rows that nothing can be told of)."""
    columns = ", ".join(_clean(name, COLUMNS[name]) if name in there else f"NULL AS {name}" for name in LIGHT)
    pool = ", ".join(f"{name} := {_plain(f'pool.{name}', kind)}" for name, kind in COLUMNS["pool"].items())
    more = {
        "pool": f"if(pool IS NULL, NULL, struct_pack({pool}))" if "pool" in there else "NULL",
        "card_uri": card("published[1].uri") if "published" in there else "NULL",
        "tasks": "tasks" if "tasks" in there else "[]",
        **{name: f"to_json({name})::VARCHAR" if name in there else "NULL" for name in ("run", "cure")},
    }
    connection.execute(
        f"CREATE TEMP TABLE read AS SELECT filename AS file, {columns}, "
        f"{', '.join(f'{value} AS {name}' for name, value in more.items())} FROM {SOURCE}",
        [patterns(some)],
    )
    nameless = "run_id IS NULL OR name IS NULL OR position IS NULL"
    counted = connection.execute(f"SELECT file, count(*) FROM read WHERE {nameless} GROUP BY file").fetchall()
    connection.execute(f"DELETE FROM read WHERE {nameless}")
    connection.execute("INSERT INTO adapter BY NAME SELECT * EXCLUDE (tasks) FROM read")
    if "tasks" in there:
        tasks = ", ".join(f"{_plain(f't.{name}', kind)} AS {name}" for name, kind in TASK.items())
        connection.execute(
            f"INSERT INTO raw_task BY NAME SELECT file, position, {tasks} "
            "FROM (SELECT file, position, unnest(tasks) AS t FROM read) AS unnested"
        )
    connection.execute("DROP TABLE read")
    return counted


def patterns(files: Sequence[Path]) -> list[str]:
    """Paths as DuckDB takes them: it reads patterns, so what would be one in a path is put in brackets."""
    return ["".join(f"[{mark}]" if mark in "*?[" else mark for mark in str(path)) for path in files]


def _plain(value: str, kind: str) -> str:
    """What a writer of another make left as NaN or infinity is no figure."""
    return f"if(isfinite({value}), {value}, NULL)" if kind == FLOAT else value


def _clean(name: str, kind: str) -> str:
    return f"strftime({name}, '{UTC}') AS {name}" if kind == TIME else f"{_plain(name, kind)} AS {name}"


def _finish(connection: "DuckDBPyConnection", published: Sequence[tuple[str, str, str]]) -> None:
    """The same run twice (a file was copied) counts once; the newest row of each name is marked."""
    connection.execute(
        f"""UPDATE adapter SET card_uri = {card("sent.uri")}
        FROM (SELECT unnest(?::VARCHAR[]) AS run, unnest(?::VARCHAR[]) AS adapter, unnest(?::VARCHAR[]) AS uri) AS sent
        WHERE adapter.run_id = sent.run AND adapter.name = sent.adapter AND card_uri IS NULL""",
        [list(column) for column in zip(*published, strict=True)] or [[], [], []],
    )
    connection.execute(
        """
        DELETE FROM adapter WHERE id IN (
            SELECT id FROM adapter QUALIFY row_number() OVER (PARTITION BY run_id, name ORDER BY file, position) > 1);
        CREATE TABLE newest AS SELECT id FROM adapter
            QUALIFY row_number() OVER (PARTITION BY name ORDER BY run_id DESC, position) = 1;
        ALTER TABLE adapter ADD COLUMN newest BOOLEAN DEFAULT false;
        UPDATE adapter SET newest = true WHERE id IN (SELECT id FROM newest);
        """
    )
    figures = ", ".join(f"{sql} AS {name}" for name, sql in turned("raw_task").items())
    connection.execute(
        f"""
        CREATE TABLE task AS
            SELECT adapter.id, raw_task.* EXCLUDE (file, position), {figures}
            FROM raw_task JOIN adapter ON raw_task.file = adapter.file AND raw_task.position = adapter.position;
        DROP TABLE raw_task;
        CREATE TABLE target AS SELECT id, {FIGURE} AS figure FROM task WHERE role = 'target' AND decides
            QUALIFY row_number() OVER (PARTITION BY id ORDER BY task) = 1;
        CREATE TABLE worst AS SELECT id, {FIGURE} AS figure FROM task WHERE role = 'general' AND decides
            QUALIFY row_number() OVER (PARTITION BY id ORDER BY used DESC NULLS LAST, task) = 1;
        CREATE TABLE figured AS SELECT file AS figured_file, position AS figured_position,
            target.figure AS figure_of_target, worst.figure AS figure_of_worst, card_uri AS figured_card
            FROM adapter LEFT JOIN target USING (id) LEFT JOIN worst USING (id);
        """
    )
