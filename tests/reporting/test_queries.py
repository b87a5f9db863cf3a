"""What the results of all runs answer: against the summaries they came from, and with files that are no such."""

import json
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.storage import Store
from tasks.planning.power import needed_right_wrong, smallest_drop
from tasks.publishing.release import Published
from tasks.recipe.schema import Destination
from tasks.registry.channels import move
from tasks.registry.records import Publication, add_publication, current, publications, releases
from tasks.reporting import queries_details, queries_files, queries_tables
from tasks.reporting.queries import open_results
from tasks.reporting.queries_releases import standing_releases
from tasks.reporting.results import append_results, parquet, results_path
from tasks.reporting.results_schema import VERSION_KEY
from tests.publishing.s3_server import BUCKET
from tests.reporting.finished_store import (
    BASE_MODEL,
    FIRST,
    SECOND,
    SELF_TESTS,
    finish,
    flip,
    general,
    make,
    member,
    prose,
    release,
    target,
)

Summaries = dict[str, dict[str, Any]]
THIRD = "20261124-120000-cccc"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "a [store] of *mine*"))


@pytest.fixture
def summaries(store: Store) -> Summaries:
    """Two runs of `tuned`, whose first one was released; one run of `other` on the same rows, and of one that died."""
    tuned = member(store, FIRST, "tuned", general("pairs", 2, 2), prose(0.0), target("tuned", 60))
    record = release(store, FIRST, tuned)
    move(store, record, "stable", expected=None)
    first = finish(store, FIRST, tuned, self_tests=SELF_TESTS, timings={"train": 3.0})
    again = member(
        store, SECOND, "tuned", general("pairs", 60, 2), prose(0.02), target("tuned", 70), some_flips=[flip(1)]
    )
    other = member(store, SECOND, "other", general("pairs", 3, 2), target("other", 60), method="qlora")
    died = member(store, SECOND, "died", target("died", 60), rows=[{"id": "z", "text": "elsewhere"}])
    died.judged = died.verdict = None
    died.error = "out of memory"
    second = finish(store, SECOND, again, other, died)
    for summary in (first, second):
        append_results(store, summary)
    return {FIRST: first, SECOND: second}


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


def test_a_store_without_results_answers_with_nothing(store: Store) -> None:
    assert ask(store, lambda of: [of.fleet(), of.tradeoff(), of.history(), of.runs(), of.adapter("a")]) == [
        [],
        [],
        {},
        [],
        None,
    ]
    assert ask(store, lambda of: of.heat_map())["adapters"] == []
    assert ask(store, lambda of: of.bench()) == {"tasks": [], "self_tests": [], "noise_floor": []}


def test_the_fleet_is_every_adapter_newest_first_with_its_gain_and_its_worst_task(
    store: Store, summaries: Summaries
) -> None:
    rows = ask(store, lambda of: of.fleet())
    assert [(row["run_id"], row["name"], row["newest"]) for row in rows] == [
        (SECOND, "tuned", True),
        (SECOND, "other", True),
        (SECOND, "died", True),
        (FIRST, "tuned", False),
    ]
    new, other, died, old = rows
    wanted = task_of(summaries, SECOND, "tuned", "tuned.held_out")
    got = new["target"]
    assert (got["gain"], got["gain_low"], got["gain_high"]) == (wanted["delta"], wanted["ci_low"], wanted["ci_high"])
    assert (got["unit"], got["n"], got["margin"], got["verdict"]) == ("points", 100, 0.1, "PASS")
    assert new["worst"]["task"] == "pairs" and new["worst"]["used"] == pytest.approx(58 / 300 / 0.05)
    assert (
        new["started"] == "2026-11-23T11:00:00Z" and new["data_digest"] == other["data_digest"] != died["data_digest"]
    )
    assert new["device_seconds"] == 8.0 + 3 * 2.5 and new["adapter_uri"].startswith(f"{store.root}/adapters/tuned-")
    assert (died["status"], died["error"], died["target"], died["worst"]) == ("error", "out of memory", None, None)
    assert other["precision"] == "nf4" and old["release"] == "tuned@v1" and new["release"] is None


def test_of_a_loss_less_is_more(store: Store, summaries: Summaries) -> None:
    wanted = task_of(summaries, SECOND, "tuned", "prose")
    tasks = ask(store, lambda of: of.adapter("tuned"))["tasks"]
    (got,) = (task for task in tasks if task["task"] == "prose")
    assert got["delta"] == wanted["delta"] > 0 and got["unit"] == "nats"
    assert (got["gain"], got["gain_low"], got["gain_high"]) == (-wanted["delta"], -wanted["ci_high"], -wanted["ci_low"])
    assert (got["drop"], got["drop_low"], got["drop_high"]) == (wanted["delta"], wanted["ci_low"], wanted["ci_high"])
    assert got["used"] == pytest.approx(wanted["delta"] / wanted["margin"])


def test_what_changed_since_the_release_before(store: Store, summaries: Summaries) -> None:
    new, other, _, old = ask(store, lambda of: of.fleet())
    assert old["since_release"] is other["since_release"] is None
    since = new["since_release"]
    assert (since["release"], since["run_id"], since["verdict"]) == ("tuned@v1", FIRST, "PASS")
    assert since["gain_before"] == 0.6 and since["gain_change"] == pytest.approx(0.1)
    assert since["worst_task"] == "pairs" and since["tasks_changed"] == [
        {"task": "pairs", "before": "PASS", "after": "FAIL"}
    ]


def test_history_is_each_release_with_what_its_run_measured(store: Store, summaries: Summaries) -> None:
    (one,) = ask(store, lambda of: of.history("tuned"))["tuned"]
    assert (one["release"], one["number"], one["run_id"], one["channels"]) == ("tuned@v1", 1, FIRST, ["stable"])
    assert one["created"] == "2026-11-22T10:00:00Z"
    assert {task["task"]: task["gain"] for task in one["tasks"]} == {
        task["task"]: -task["delta"] if task["task"] == "prose" else task["delta"]
        for task in summaries[FIRST]["adapters"][0]["tasks"]
    }
    assert ask(store, lambda of: of.history("nobody")) == {"nobody": []}
    Path(store.root, results_path(FIRST)).unlink()
    (one,) = ask(store, lambda of: of.history())["tuned"]
    assert one["tasks"] == [] and one["verdict"] == "PASS"


def test_a_damaged_release_is_told_and_the_rest_is_answered(store: Store, summaries: Summaries) -> None:
    store.write_json("releases/broken/1/release.json", {"name": "broken"})
    with open_results(store) as results:
        assert list(results.history()) == ["tuned"] and len(results.fleet()) == 4
        assert [warning.partition(":")[0] for warning in results.warnings] == ["releases of broken are left out"]


def test_the_heat_map_is_every_general_task_of_the_newest_rows(store: Store, summaries: Summaries) -> None:
    heat = ask(store, lambda of: of.heat_map())
    cells = heat["cells"]
    assert len({len(values) for values in cells.values()}) == 1
    found = {
        (heat["adapters"][a]["name"], heat["tasks"][t]["task"]): (gain, verdict)
        for a, t, gain, verdict in zip(cells["a"], cells["t"], cells["gain"], cells["verdict"], strict=True)
    }
    expected = {}
    for name, task, sign in (("tuned", "pairs", 1), ("tuned", "prose", -1), ("other", "pairs", 1)):
        wanted = task_of(summaries, SECOND, name, task)
        expected[name, task] = (sign * wanted["delta"], wanted["verdict"])
    assert found == expected


def test_an_adapter_is_all_of_its_row_and_those_of_other_methods(store: Store, summaries: Summaries) -> None:
    one = ask(store, lambda of: of.adapter("tuned"))
    assert one["run_id"] == SECOND and len(one["curve"]) == 3 and one["flips"][0]["base_text"] == "Paris"
    assert [point["tokens_per_second"] for point in one["curve"]] == [40.0, 66.5, None]
    assert [point["memory_bytes"] for point in one["curve"]] == [1000, 1234, None]
    assert [(other["run_id"], other["name"], other["method"]) for other in one["methods"]] == [
        (SECOND, "tuned", "lora"),
        (SECOND, "other", "qlora"),
        (FIRST, "tuned", "lora"),
    ]
    assert [each["release"] for each in one["releases"]] == ["tuned@v1"]
    assert one["uris"]["verdict"].startswith(f"{store.root}/verdicts/tuned-") and one["uris"]["card"] is None
    assert one["target"]["gain"] == pytest.approx(0.7) and one["created"].endswith("Z")
    old = ask(store, lambda of: of.adapter("tuned", FIRST))
    assert old["run_id"] == FIRST and old["run"]["self_tests"][0]["kind"] == "again"
    assert ask(store, lambda of: of.adapter("tuned", "another run")) is None


def test_details_are_all_adapters_one_by_one(store: Store, summaries: Summaries) -> None:
    with open_results(store) as results:
        details = {(run_id, name): json.loads(text) for run_id, name, text in results.details()}
        assert len(details) == 4
        one = results.adapter("tuned", FIRST)
        assert one is not None
        assert details[FIRST, "tuned"] == {
            key: value for key, value in one.items() if key not in ("methods", "releases")
        }


def test_the_bench_says_what_its_documents_settle(store: Store, summaries: Summaries) -> None:
    bench = ask(store, lambda of: of.bench())
    pairs = next(one for one in bench["tasks"] if one["task"] == "pairs" and one["precision"] == "nf4")
    flipped = 5 / 300
    assert pairs["disagreement"] == pytest.approx(flipped) and (pairs["base_model"], pairs["n"]) == (BASE_MODEL, 300)
    assert {one["margin"]: one["documents"] for one in pairs["needed"]}[0.05] == needed_right_wrong(0.05, flipped, 0.05)
    assert pairs["settles"] == pytest.approx(smallest_drop(300, flipped, 0.05))
    forgot = next(one for one in bench["tasks"] if one["task"] == "pairs" and one["precision"] == "none")
    assert forgot["disagreement"] is None and forgot["needed"] == [] and forgot["settles"] is None
    text = next(one for one in bench["tasks"] if one["task"] == "prose")
    assert text["needed"][0]["margin"] == pytest.approx(math.log(1.01)) and text["disagreement"] is None
    assert [test["kind"] for test in bench["self_tests"]] == ["again", "noised"]
    assert bench["noise_floor"] == [
        {"base_model": BASE_MODEL, "precision": "none", "run_id": FIRST, "flips": 1, "largest_difference": 0.25,
         "said": "1 flips of 200"}
    ]  # fmt: skip


def test_runs_are_counted_newest_first(store: Store, summaries: Summaries) -> None:
    second, first = ask(store, lambda of: of.runs())
    assert (second["run_id"], second["adapters"], second["passed"], second["failed"], second["errors"]) == (
        SECOND,
        3,
        1,
        1,
        1,
    )
    assert first["timings"] == [{"stage": "train", "seconds": 3.0}] and first["gate"]["alpha"] == 0.05
    assert store.read_json(first["summary_uri"].removeprefix(f"{store.root}/"))["run_id"] == FIRST


def test_learned_against_forgotten_with_the_path_of_a_cure(store: Store) -> None:
    curve = [
        {"kind": "scale", "scale": scale, "share": None, "name": name, "digest": "d", "verdict": "FAIL", "alpha": 0.01,
         "pool": {"drop": drop}, "target": {"delta": gain, "ci_low": gain - 0.1, "ci_high": gain + 0.1},
         "general": [{"task": "pairs", "delta": -drop, "verdict": "FAIL"}]}
        for scale, name, drop, gain in ((1.0, "as trained", 0.4, 0.9), (0.5, "tuned.x0.5", 0.1, 0.6))
    ]  # fmt: skip
    cure = {"kept": {"kind": "scale", "scale": 0.5, "share": None}, "curve": curve, "said": ""}
    tasks = (general("pairs", 20, 0), general("more", 2, 2))
    cured = member(store, FIRST, "cured", *tasks, target("cured", 60), cure=cure)
    plain = member(store, FIRST, "plain", general("pairs", 2, 2), target("plain", 70))
    append_results(store, finish(store, FIRST, cured, plain))
    first, second = ask(store, lambda of: of.tradeoff())
    assert first["forgotten_of"] == "pool" and first["forgotten"] == pytest.approx((20 / 300 + 0) / 2)
    assert [(one["gain"], one["forgotten"], one["kept"]) for one in first["path"]] == [
        (0.9, 0.4, False),
        (0.6, 0.1, True),
    ]
    assert second["path"] == [] and second["forgotten_of"] == "pairs" and second["forgotten_unit"] == "points"


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


def test_files_that_are_none_of_ours_are_left_out_by_name(store: Store, summaries: Summaries, tmp_path: Path) -> None:
    whole = parquet([another()])
    written(store, "half", whole[: len(whole) // 2])
    written(store, "empty", b"")
    folder = Path(store.root) / "results"
    reworked(whole, folder / "foreign.parquet", lambda table: table, None)
    reworked(whole, folder / "later.parquet", lambda table: table, "2")
    numbered = pa.field("name", pa.int64())
    reworked(
        whole,
        folder / "types.parquet",
        lambda of: of.set_column(of.schema.get_field_index("name"), numbered, [[1]]),
        "1",
    )
    reworked(whole, folder / "nameless.parquet", lambda table: table.drop_columns(["name"]), "1")
    (folder / ".writing-1.parquet").write_bytes(b"unfinished")
    (folder / "notes.txt").write_text("mine")
    names, warnings = warned(store)
    assert len(names) == 4
    told = {warning.partition(" is left out: ")[0]: warning.partition(" is left out: ")[2] for warning in warnings}
    assert set(told) == {
        f"results/{name}.parquet" for name in ("half", "empty", "foreign", "later", "types", "nameless")
    }
    assert "schema version 2; this Tunefleet reads version 1" in told["results/later.parquet"]
    assert "Show it with the Tunefleet that wrote it" in told["results/later.parquet"]
    assert all("delete it" in told[f"results/{name}.parquet"] for name in ("half", "empty", "types", "later"))
    assert told["results/half.parquet"].startswith("no whole Parquet file")
    assert "column name has other types" in told["results/types.parquet"]
    assert "no column name" in told["results/nameless.parquet"]


def test_a_prompt_stands_beside_the_adapter_of_the_same_rows(store: Store) -> None:
    shown, tuned = (member(store, FIRST, name, general("pairs", 2, 2), target(name, 30)) for name in ("shown", "tuned"))
    shown.adapter = shown.adapter.model_copy(update={"method": "prompt", "num_fewshot": 3})
    assert shown.verdict and shown.data
    shown.trained = make(store, FIRST, "prompt", "prompts", "shown", {"s.json": "[]"}, {"data": shown.data.ref.digest})
    shown.verdict = {**shown.verdict, "verdict": None}
    append_results(store, finish(store, FIRST, shown, tuned))
    row = ask(store, lambda of: of.fleet())[0]
    assert (row["method"], row["status"], row["verdict"]) == ("prompt", "compared", None)
    assert row["target"]["gain"] == pytest.approx(0.3) and row["adapter_bytes"] == len("[]")
    one = ask(store, lambda of: of.adapter("shown"))
    assert [(other["name"], other["method"]) for other in one["methods"]] == [("shown", "prompt"), ("tuned", "lora")]
    assert one["curve"] is one["train_seconds"] is None


def test_an_adapter_that_a_later_run_found_in_the_store_is_of_both_runs(store: Store) -> None:
    tuned = member(store, FIRST, "tuned", general("pairs", 2, 2), target("tuned", 60))
    for run_id in (FIRST, SECOND):
        append_results(store, finish(store, run_id, tuned))
    release(store, FIRST, tuned)
    new, old = ask(store, lambda of: of.fleet())
    assert new["digest"] == old["digest"] and (new["newest"], old["newest"]) == (True, False)
    assert (new["release"], old["release"]) == (None, "tuned@v1")
    assert new["since_release"]["gain_change"] == 0.0 and new["since_release"]["tasks_changed"] == []
    assert len(ask(store, lambda of: [run_id for run_id, _, _ in of.details()])) == 2
    assert len(ask(store, lambda of: of.heat_map())["adapters"]) == 1


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
        assert [warning.partition(":")[0] for warning in results.warnings] == [results_path(SECOND)]


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
    wanted = [(run_id, f"a{at}") for run_id in sorted(runs, reverse=True) for at in range(runs[run_id])]
    with open_results(store) as results:
        assert [(row["run_id"], row["name"]) for row in results.fleet()] == wanted
        found = [(run_id, name, json.loads(text)) for run_id, name, text in results.details()]
        assert [(run_id, name) for run_id, name, _ in found] == [one for one in wanted if one[0] != bad]
        assert all((one["run_id"], one["name"]) == (run_id, name) for run_id, name, one in found)
        old = {run_id for number, run_id in enumerate(runs) if number in (3, 4, 9)}
        assert all((one["curve"] is None) == (run_id in old) for run_id, _, one in found)
        assert [warning.partition(":")[0] for warning in results.warnings] == [f"results/{bad}.parquet"]
        assert [one["run_id"] for one in results.runs()] == sorted(runs, reverse=True)


def spoil(path: Path, column: str) -> None:
    """Overwrite a column's bytes; the file's own list of contents stays whole."""
    group = pq.read_metadata(path).row_group(0)
    chunk = next(one for one in map(group.column, range(group.num_columns)) if one.path_in_schema == column)
    data = bytearray(path.read_bytes())
    start = min(at for at in (chunk.dictionary_page_offset, chunk.data_page_offset) if at)
    data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(data)


def test_a_file_that_is_damaged_inside_is_found_among_many(store: Store, summaries: Summaries) -> None:
    for number in range(5):
        written(store, f"2026112{number + 4}-000000-dddd", parquet([another(f"2026112{number + 4}-000000-dddd")]))
    spoil(Path(store.root) / "results" / "20261126-000000-dddd.parquet", "verdict")
    names, warnings = warned(store)
    assert names.count("another") == 4 and len(names) == 8
    assert len(warnings) == 1 and "20261126-000000-dddd.parquet is left out: it is damaged" in warnings[0]


def test_damaged_answers_leave_the_fleet_as_it_is(store: Store, summaries: Summaries) -> None:
    spoil(Path(store.root) / results_path(SECOND), "curve.list.element.loss")
    with open_results(store) as results:
        assert len(results.fleet()) == 4 and results.warnings == []
        assert [name for _, name, _ in results.details()] == ["tuned"]
        assert len(results.warnings) == 1 and f"{SECOND}.parquet: details are left out" in results.warnings[0]
        assert results.adapter("other") is None and results.adapter("tuned", FIRST) is not None


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
    one = ask(store, lambda of: of.adapter("another"))
    assert one["p_value"] is one["train_loss"] is one["tasks"][0]["delta"] is one["tasks"][0]["gain"] is None
    assert one["error"] == "NaN is a word here"


def test_columns_that_came_later_are_null_in_files_from_before(store: Store, summaries: Summaries) -> None:
    (Path(store.root) / "results").mkdir(exist_ok=True)
    dropped = ["tasks", "pool", "published", "peak_memory_bytes", "cure", "started"]
    reworked(parquet([another()]), Path(store.root) / results_path(THIRD), lambda of: of.drop_columns(dropped), "1")
    rows = ask(store, lambda of: of.fleet())
    assert rows[0]["name"] == "another" and rows[0]["peak_memory_bytes"] is rows[0]["target"] is None
    one = ask(store, lambda of: of.adapter("another"))
    assert one["tasks"] is one["cure"] is one["started"] is None
    ask(store, lambda of: [of.tradeoff(), of.heat_map(), of.bench(), of.runs()])


def test_columns_that_are_not_known_yet_are_passed_over(store: Store, summaries: Summaries) -> None:
    later = pa.field("from_the_future", pa.list_(pa.int64()))
    whole = parquet([another(error="of a later Tunefleet")])
    reworked(whole, Path(store.root) / results_path(THIRD), lambda of: of.append_column(later, [[[1, 2]]]), "1")
    assert ask(store, lambda of: of.fleet())[0]["error"] == "of a later Tunefleet"
    assert "from_the_future" not in ask(store, lambda of: of.adapter("another"))


def test_a_file_that_was_copied_counts_once(store: Store, summaries: Summaries) -> None:
    folder = Path(store.root) / "results"
    (folder / "copy.parquet").write_bytes((Path(store.root) / results_path(SECOND)).read_bytes())
    rows = ask(store, lambda of: of.fleet())
    assert len(rows) == 4
    assert len(ask(store, lambda of: of.adapter("tuned"))["tasks"]) == 3
    assert len(ask(store, lambda of: [text for _, _, text in of.details()])) == 4
    assert len(ask(store, lambda of: of.heat_map())["cells"]["a"]) == 3


def test_a_remote_store_is_read_from_copies_that_follow_it(
    s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    monkeypatch.setenv("TUNEFLEET_CACHE", str(tmp_path / "cache"))
    store = Store(f"s3://{BUCKET}/queries/{tmp_path.name}")
    assert ask(store, lambda of: of.fleet()) == []
    append_results(store, finish(store, FIRST, member(store, FIRST, "tuned", target("tuned", 60))))
    written(store, "half", b"PAR1")
    names, warnings = warned(store)
    assert names == ["tuned"] and [warning.partition(" ")[0] for warning in warnings] == ["results/half.parquet"]
    copies = sorted(tmp_path.glob("cache/results/*/*/*.parquet"))
    warned(store)
    assert sorted(tmp_path.glob("cache/results/*/*/*.parquet")) == copies and len(copies) == 2
    append_results(store, finish(store, FIRST, member(store, FIRST, "renamed", target("renamed", 60))))
    store.fs.rm_file(f"{store.root}/results/half.parquet")
    assert warned(store) == (["renamed"], [])
    assert ask(store, lambda of: of.adapter("renamed"))["uris"]["adapter"].startswith(f"s3://{BUCKET}/queries/")


@pytest.fixture
def bucket(s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Store:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    monkeypatch.setenv("TUNEFLEET_CACHE", str(tmp_path / "cache"))
    return Store(f"s3://{BUCKET}/queries/{tmp_path.name}")


def test_a_buckets_files_are_fetched_at_the_same_time_and_one_that_goes_away_is_told(
    bucket: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = [f"2026110{day}-000000-dddd" for day in range(1, 9)]
    for run_id in days:
        written(bucket, run_id, parquet([another(run_id, run_id)]))
    fetch, together = bucket.fs.get_file, threading.Barrier(len(days))

    def met(source: str, target: str) -> None:
        together.wait(timeout=60)  # until all are under way: one after the other would break it
        if days[0] in source:
            bucket.fs.rm_file(source)
        fetch(source, target)

    monkeypatch.setattr(bucket.fs, "get_file", met)
    names, warnings = warned(bucket)
    assert names == days[:0:-1] and len(days) <= queries_files.REQUESTS
    (warning,) = warnings
    assert warning.startswith(f"results/{days[0]}.parquet is left out: it could not be fetched (FileNotFoundError")


@pytest.mark.parametrize("where", ["store", "bucket"])
def test_releases_are_read_together_as_the_registry_reads_them_one_by_one(
    where: str, request: pytest.FixtureRequest
) -> None:
    store = request.getfixturevalue(where)
    for name in ("tuned", "other"):
        record = release(store, FIRST, member(store, FIRST, name, target(name, 60)))
        move(store, record, "stable", expected=None)
        release(store, SECOND, member(store, SECOND, name, target(name, 70)))
        published = Published(to="s3", what="adapter", uri=f"s3://elsewhere/{name}", revision=None, digest="d" * 64)
        add_publication(store, record, Publication(place=Destination(s3="s3://elsewhere"), published=published))
    store.write("releases/half/1/release.json", b'{"name": ')
    warnings: list[str] = []
    found = standing_releases(store, warnings)
    assert list(found) == ["half", "other", "tuned"] and warnings == []
    for name, some in found.items():
        wanted = releases(store, name)
        assert [(one.number, one.run_id, one.verdict) for one in some] == [
            (one.number, one.run_id, one.verdict_says) for one in wanted
        ]
        sent = [tuple(each.published.uri for each in publications(store, one)) for one in wanted]
        assert [one.published for one in some] == sent
        stands = [one.number for one in some if "stable" in one.channels]
        assert stands == ([current(store, name, "stable")] if wanted else [])
