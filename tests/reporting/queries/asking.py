"""How the tests ask, and files of results as others would write them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra.storage import Store
from tasks.reporting.queries import open_results
from tasks.reporting.results_schema import VERSION_KEY

Summaries = dict[str, dict[str, Any]]
THIRD = "20261124-120000-cccc"


def ask(store: Store, question: Callable[[Any], Any]) -> Any:
    """The answer, which is JSON, from results without a fault."""
    with open_results(store) as results:
        answer = question(results)
        assert results.warnings == []
    return json.loads(json.dumps(answer, allow_nan=False))


def warned(store: Store) -> tuple[list[str], list[str]]:
    """(names of the fleet; warnings)."""
    with open_results(store) as results:
        return [row["name"] for row in results.fleet()], results.warnings


def task_of(summaries: Summaries, run_id: str, name: str, task: str) -> dict[str, Any]:
    adapter = next(one for one in summaries[run_id]["adapters"] if one["name"] == name)
    return next(one for one in adapter["tasks"] if one["task"] == task)


def details_of(store: Store, name: str, run_id: str | None = None) -> dict[str, Any]:
    """All of one adapter, the newest of its name if no run is named."""
    found = ask(store, lambda of: list(of.details()))
    return dict([json.loads(text) for run, each, text in found if each == name and run_id in (None, run)][-1])


def written(store: Store, name: str, data: bytes) -> None:
    store.write(f"results/{name}.parquet", data)


def another(run_id: str = THIRD, name: str = "another", **more: Any) -> dict[str, Any]:
    return {"run_id": run_id, "name": name, "position": 0, **more}


def reworked(data: bytes, path: Path, change: Callable[[pa.Table], pa.Table], version: str | None) -> None:
    """The file of another writer."""
    table = change(pq.read_table(pa.BufferReader(data)))
    with pq.ParquetWriter(path, table.schema, store_schema=False) as writer:
        writer.write_table(table)
        if version:
            writer.add_key_value_metadata({VERSION_KEY: version})


def spoil(path: Path, column: str) -> None:
    """Overwrite a column's bytes; the file's own list of contents stays whole."""
    group = pq.read_metadata(path).row_group(0)
    chunk = next(one for one in map(group.column, range(group.num_columns)) if one.path_in_schema == column)
    data = bytearray(path.read_bytes())
    start = min(at for at in (chunk.dictionary_page_offset, chunk.data_page_offset) if at)
    data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(data)
