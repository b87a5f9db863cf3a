"""All columns of each adapter, read from many files at a time, of which some are damaged."""

import json
import math
from pathlib import Path

import pyarrow as pa
import pytest

from infra.storage import Store
from tasks.reporting import queries_details, queries_tables
from tasks.reporting.queries import open_results
from tasks.reporting.results import parquet, results_path
from tests.reporting.finished_store import FIRST, SECOND
from tests.reporting.queries.asking import THIRD, Summaries, another, ask, details_of, reworked, spoil, warned, written


def test_an_adapter_is_all_of_its_row(store: Store, summaries: Summaries) -> None:
    one = details_of(store, "tuned")
    assert one["run_id"] == SECOND and len(one["curve"]) == 3 and one["flips"][0]["base_text"] == "Paris"
    assert [point["tokens_per_second"] for point in one["curve"]] == [40.0, 66.5, None]
    assert [point["memory_bytes"] for point in one["curve"]] == [1000, 1234, None]
    assert one["uris"]["verdict"].startswith(f"{store.root}/verdicts/tuned-") and one["uris"]["card"] is None
    assert one["target"]["gain"] == pytest.approx(0.7) and one["created"].endswith("Z")
    old = details_of(store, "tuned", FIRST)
    assert old["run_id"] == FIRST and old["run"]["self_tests"][0]["kind"] == "again"


def test_details_are_all_adapters_one_by_one_the_oldest_run_first(store: Store, summaries: Summaries) -> None:
    with open_results(store) as results:
        found = [(run_id, name, json.loads(text)) for run_id, name, text in results.details()]
    assert [(run_id, name) for run_id, name, _ in found] == [
        (FIRST, "tuned"),
        *((SECOND, name) for name in ("tuned", "other", "died")),
    ]
    assert all((one["run_id"], one["name"]) == (run_id, name) for run_id, name, one in found)


def test_rows_that_nobody_can_name_are_told_and_the_others_stay(store: Store) -> None:
    """And of two rows of one name in a run the first one counts, with its own tasks."""
    task = {"task": "t", "role": "general", "metric": "acc", "decides": True, "delta": 0.5, "margin": 0.1, "n": 5}
    some = [another(), another(position=1, name=None), another(position=None, name="placeless")]
    twice = [another(name="twice", position=2, tasks=[task]), another(name="twice", position=3, tasks=[task, task])]
    written(store, THIRD, parquet([*some, *twice]))
    names, warnings = warned(store)
    assert names == ["another", "twice"]
    assert warnings == [f"results/{THIRD}.parquet: 2 rows without run_id, name or position are left out"]
    with open_results(store) as results:
        details = {name: json.loads(text) for _, name, text in results.details()}
        assert list(details) == ["another", "twice"] and len(details["twice"]["tasks"]) == 1
        assert len(results.heat_map()["cells"]["a"]) == 1


def test_a_file_that_goes_away_meanwhile_is_told(store: Store, summaries: Summaries) -> None:
    with open_results(store) as results:
        Path(store.root, results_path(SECOND)).unlink()
        assert [(run_id, name) for run_id, name, _ in results.details()] == [(FIRST, "tuned")]
        assert len(results.fleet()) == 4
        (warning,) = results.warnings
        assert warning.startswith(f"{results_path(SECOND)}: details are left out: it could not be read this time")


def test_many_small_files_are_read_together_in_order(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one row and of many, of today and from before, whole and damaged."""
    monkeypatch.setattr(queries_details, "AT_ONCE", 4)
    monkeypatch.setattr(queries_tables, "AT_ONCE", 3)
    folder = Path(store.root) / "results"
    folder.mkdir(parents=True)
    runs = {f"202611{day:02d}-000000-eeee": 9 if day == 5 else 1 + day % 3 for day in range(1, 20)}
    for number, (run_id, count) in enumerate(runs.items()):
        more = {"run": {"store": run_id}, "curve": [{"step": 1, "loss": 1.0}]}
        whole = parquet([another(run_id, f"a{at}", position=at, **more) for at in range(count)])
        dropped = ["cure", "curve"] if number in (3, 4, 9) else []
        reworked(whole, folder / f"{run_id}.parquet", lambda of, names=dropped: of.drop_columns(names), "1")
    bad = "20261112-000000-eeee"
    spoil(folder / f"{bad}.parquet", "curve.list.element.loss")
    wanted = [(run_id, f"a{at}") for run_id in sorted(runs) for at in range(runs[run_id])]
    with open_results(store) as results:
        assert sorted((row["run_id"], row["name"]) for row in results.fleet()) == wanted
        found = [(run_id, name, json.loads(text)) for run_id, name, text in results.details()]
        assert [(run_id, name) for run_id, name, _ in found] == [one for one in wanted if one[0] != bad]
        assert all((one["run_id"], one["name"]) == (run_id, name) for run_id, name, one in found)
        old = {run_id for number, run_id in enumerate(runs) if number in (3, 4, 9)}
        assert all((one["curve"] is None) == (run_id in old) for run_id, _, one in found)
        assert [warning.partition(":")[0] for warning in results.warnings] == [f"results/{bad}.parquet"]


def test_damaged_answers_leave_the_fleet_as_it_is(store: Store, summaries: Summaries) -> None:
    spoil(Path(store.root) / results_path(SECOND), "curve.list.element.loss")
    with open_results(store) as results:
        assert len(results.fleet()) == 4 and results.warnings == []
        assert [name for _, name, _ in results.details()] == ["tuned"]
        (warning,) = results.warnings
        assert warning.startswith(f"results/{SECOND}.parquet: details are left out: it is damaged")


def test_numbers_that_are_none_are_null_whoever_wrote_them(store: Store) -> None:
    tasks = [{"task": "t", "role": "general", "metric": "acc", "decides": True, "delta": 0.5, "margin": 0.1, "n": 5}]
    whole = parquet([another(p_value=0.5, train_loss=0.5, tasks=tasks, error="NaN is a word here")])

    def spoiled(table: pa.Table) -> pa.Table:
        (row,) = table.to_pylist()
        row.update(p_value=math.nan, train_loss=math.inf)
        row["tasks"][0]["delta"] = math.nan
        return pa.Table.from_pylist([row], schema=table.schema)

    (Path(store.root) / "results").mkdir(parents=True)
    reworked(whole, Path(store.root) / results_path(THIRD), spoiled, "1")
    (row,) = ask(store, lambda of: of.fleet())
    assert row["worst"]["gain"] is None and row["worst"]["used"] is None
    one = details_of(store, "another")
    assert one["p_value"] is one["train_loss"] is one["tasks"][0]["delta"] is one["tasks"][0]["gain"] is None
    assert one["error"] == "NaN is a word here"
