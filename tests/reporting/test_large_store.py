"""Ten thousand adapters by twenty tasks: built within its memory and size, with every figure as the Parquet has it.

The building process is one of its own, so that its memory is its own. What it wrote is compared with the files of
results by a DuckDB that is asked here, past all code of the dashboard.
"""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from benchmarks.dashboard import write_synthetic
from infra.settings import PROJECT
from infra.storage import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ADAPTERS, TASKS, RUNS = 10_000, 20, 100


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(str(tmp_path_factory.mktemp("large") / "store"))
    write_synthetic(store, adapters=ADAPTERS, tasks=TASKS, runs=RUNS)
    return store


@pytest.fixture(scope="module")
def built(store: Store) -> dict[str, Any]:
    return build(store)


def build(store: Store) -> dict[str, Any]:
    """What the benchmark's own step says of a fresh process."""
    command = [sys.executable, str(PROJECT / "benchmarks" / "dashboard.py"), "--step", "build", store.root]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [*command, f"{store.root}/dashboard"], env=environment, check=True, text=True, stdout=subprocess.PIPE
    )
    return dict(json.loads(done.stdout))


def parts(page: Path) -> Iterator[tuple[str, Any]]:
    """(name, content) of every data file beside the page; each is one call with two texts, the second of them JSON."""
    for file in sorted((page.parent / "data").iterdir()):
        text = file.read_text(encoding="utf-8").strip().removesuffix(";")
        assert text.startswith("tunefleet(") and text.endswith(")"), file.name
        name, content = json.loads(f"[{text[len('tunefleet(') : -1]}]")
        yield name, json.loads(content, parse_constant=_no_number)


def _no_number(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


def unpacked(table: dict[str, Any], key: str) -> list[Any]:
    column = table["columns"][key]
    words = column.get("words")
    return [value if words is None or value is None else words[value] for value in column["values"]]


def asked(store: Store, sql: str) -> list[tuple[Any, ...]]:
    """Of the files of results, as anybody would."""
    with duckdb.connect(":memory:") as connection:
        return connection.execute(sql.replace("RESULTS", f"'{store.root}/results/*.parquet'")).fetchall()


def test_ten_thousand_adapters_fit(store: Store, built: dict[str, Any]) -> None:
    assert built["adapters"] == ADAPTERS and built["warnings"] == []
    assert built["memory, MiB"] < 1024
    assert Path(built["page"]).stat().st_size < 5_000_000


def test_every_figure_is_that_of_the_parquet(store: Store, built: dict[str, Any]) -> None:
    found = dict(parts(Path(built["page"])))
    fleet = found["fleet"]
    names, gains = unpacked(fleet, "name"), unpacked(fleet, "target.gain")
    counted = dict(asked(store, "SELECT verdict, count(*) FROM RESULTS GROUP BY verdict"))
    assert Counter(unpacked(fleet, "verdict")) == counted and fleet["length"] == len(set(names)) == ADAPTERS
    wanted = dict(
        asked(
            store,
            "SELECT name, t.delta FROM (SELECT name, unnest(tasks) AS t FROM RESULTS) WHERE t.role = 'target'",
        )
    )
    assert all(math.isclose(gain, wanted[name], rel_tol=1e-5) for name, gain in zip(names, gains, strict=True))

    details = {key: one for name, part in found.items() if name.startswith("adapters-") for key, one in part.items()}
    ((adapters, tasks, flips, points, drop),) = asked(
        store,
        """SELECT count(*), sum(len(tasks)), sum(len(flips)), sum(len(curve)),
            sum(list_sum(list_transform(list_filter(tasks, lambda t: t.role = 'general'), lambda t: -t.delta)))
        FROM RESULTS""",
    )
    assert len(details) == adapters == ADAPTERS
    for key, count in (("tasks", tasks), ("flips", flips), ("curve", points)):
        assert sum(len(one[key]) for one in details.values()) == count, key
    told = sum(task["drop"] for one in details.values() for task in one["tasks"] if task["role"] == "general")
    assert told == pytest.approx(drop)

    cells = [cell for name, part in found.items() if name.startswith("heat-") for row in part for cell in row]
    assert len(cells) == ADAPTERS * TASKS and None not in cells
    ((released,),) = asked(store, "SELECT count(*) FROM RESULTS WHERE release IS NOT NULL")
    assert len(found["history"]["names"]) == released > 0


def test_a_run_for_each_adapter_is_the_same_fleet(tmp_path: Path) -> None:
    """Many small files are read many at a time: no more memory for them. Fewer than above, for the sake of time."""
    store = Store(str(tmp_path / "store"))
    write_synthetic(store, adapters=400, tasks=TASKS, runs=400)
    told = build(store)
    assert told["adapters"] == 400 and told["memory, MiB"] < 1024 and told["warnings"] == []
    found = dict(parts(Path(told["page"])))
    runs = unpacked(found["fleet"], "run_id")
    assert runs == sorted(runs, reverse=True) and len(set(runs)) == 400
    details = [key for name, part in found.items() if name.startswith("adapters-") for key in part]
    assert sorted(details) == sorted(f"{name}@{run}" for name, run in asked(store, "SELECT name, run_id FROM RESULTS"))
