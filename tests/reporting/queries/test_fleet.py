"""Every adapter of every run, against the summaries they came from; and what changed since a release."""

import pytest

from infra.storage import Store
from tasks.reporting.results import append_results
from tests.reporting.finished_store import FIRST, SECOND, finish, general, make, member, release, target
from tests.reporting.queries.asking import Summaries, ask, details_of, task_of


def test_a_store_without_results_answers_with_nothing(store: Store) -> None:
    assert ask(store, lambda of: [of.fleet(), of.tradeoff(), of.history(), list(of.details())]) == [[], [], {}, []]
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
    tasks = details_of(store, "tuned")["tasks"]
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
    one = details_of(store, "shown")
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
