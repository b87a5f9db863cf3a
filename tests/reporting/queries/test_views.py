"""What the views of many adapters draw: heat map, learned against forgotten, the bench."""

import math

import pytest

from infra.storage import Store
from tasks.planning.power import needed_right_wrong, smallest_drop
from tasks.reporting.results import append_results, parquet
from tests.reporting.finished_store import BASE_MODEL, FIRST, SECOND, finish, general, member, target
from tests.reporting.queries.asking import THIRD, Summaries, another, ask, task_of, written


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


def test_a_task_without_documents_is_none_of_the_bench(store: Store) -> None:
    task = {"role": "general", "metric": "acc", "decides": True, "verdict": "INCONCLUSIVE", "delta": 0.0, "margin": 0.1}
    tasks = [
        {**task, "task": "none", "kind": "right/wrong", "n": 0, "lost": 0, "gained": 0},
        {**task, "task": "graded", "kind": "graded", "n": 0, "sd": 0.5},
        {**task, "task": "unknown", "kind": "graded", "n": None, "sd": 0.5},
        {**task, "task": "some", "kind": "right/wrong", "n": 10, "lost": 1, "gained": 0},
    ]
    written(store, THIRD, parquet([another(tasks=tasks)]))
    assert [(one["task"], one["disagreement"]) for one in ask(store, lambda of: of.bench())["tasks"]] == [("some", 0.1)]
