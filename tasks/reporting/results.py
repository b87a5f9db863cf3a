"""A run's results as one Parquet file in its store, for whoever looks at many runs. docs/RESULTS.md has the columns.

Written when a run is reported; and later, from what it left, for runs that have none.
"""

import io
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

from infra.redaction import without_secrets
from infra.storage import Store
from tasks.reporting.finished import finished_runs
from tasks.reporting.results_rows import rows_of
from tasks.reporting.results_schema import COLUMNS, VERSION, VERSION_KEY, arrow_schema, shaped

FOLDER = "results"
ROW_GROUP = 64  # rows; one adapter is read without those of the others


def results_path(run_id: str) -> str:
    """Of a run's file, below the store's root."""
    return f"{FOLDER}/{run_id}.parquet"


def append_results(store: Store, summary: Mapping[str, Any]) -> str:
    """Write the results of a finished run, as a whole; returns the file's place below the root."""
    path = results_path(summary["run_id"])
    store.write(path, parquet(rows_of(store, summary)))
    return path


def leave_results(store: Store, summary: Mapping[str, Any], warn: Callable[[str], None]) -> bool:
    """The same, if it can be done. Results only show what the store has: their want fails no run."""
    try:
        append_results(store, summary)
    except Exception as error:  # noqa: BLE001 - whatever is odd in an old summary, or the store's client raises
        why = without_secrets(f"{type(error).__name__}: {error}")
        warn(f"the results of run {summary.get('run_id')} were not written: {why}")
        return False
    return True


def fill_in(store: Store, warn: Callable[[str], None]) -> list[str]:
    """Write the results of every finished run that has none; the ids of those that have them now."""
    there = {name.removesuffix(".parquet") for name in store.list_names(FOLDER)}
    filled = []
    for run_id in finished_runs(store):
        if run_id in there:
            continue
        summary = store.read_json(f"runs/{run_id}/summary.json")
        if not isinstance(summary, dict):
            warn(f"runs/{run_id}/summary.json is damaged; the run is not shown")
        elif leave_results(store, {**summary, "run_id": run_id}, warn):
            filled.append(run_id)
    return filled


def parquet(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """A file of results. TypeError or ValueError if a value is not of its column's kind."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file, waiting = io.BytesIO(), iter(rows)
    # Arrow's own copy of the schema and figures on every column would be most of a small file.
    options = {"compression": "zstd", "store_schema": False, "write_statistics": ["run_id", "name", "position"]}
    with pq.ParquetWriter(file, arrow_schema(), **options) as writer:
        while some := list(islice(waiting, ROW_GROUP)):
            writer.write_table(pa.Table.from_pylist([shaped(COLUMNS, row) for row in some], schema=arrow_schema()))
        writer.add_key_value_metadata({VERSION_KEY: VERSION})
    return file.getvalue()
