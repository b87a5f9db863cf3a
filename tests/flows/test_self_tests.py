"""The bench of the real base is tried: the base passes against itself, and both kinds of damage are noticed."""

import pytest
import yaml

from tests.flows.conftest import FinishedRun

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def tried(prefect_api: None, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """One adapter of one step, so that there is something to judge; what is looked at stands beside it."""
    from flows.train_adapters import train_adapters

    folder = tmp_path_factory.mktemp("tried")
    rows = [{"question": f"What is {number} plus 1?", "answer": str(number + 1)} for number in range(8)]
    messages = {"user": "{{ question }}", "assistant": "{{ answer }}"}
    adapter = {
        "name": "idle",
        "data": {"rows": rows, "held_out": 0, "messages": messages},
        "training": {"max_steps": 1, "per_device_train_batch_size": 2},
        "target": {"splits": ["train"], "decides": "train", "max_new_tokens": 4, "limit": 2},
    }
    general = [{"task": task, "limit": 100, "margin": 0.05} for task in ("capitals_choice", "capitals_open")]
    recipe = folder / "tried.yaml"
    evaluation = {"general": general, "batch_size": 16, "self_tests": True}
    recipe.write_text(yaml.safe_dump({"name": "tried", "adapters": [adapter], "evaluation": evaluation}))
    summary = train_adapters(str(recipe), store=str(folder / "store"))
    return FinishedRun(folder, recipe, folder / "store", summary)


def test_the_base_passes_against_itself(tried: FinishedRun) -> None:
    again = found(tried)["again"]
    assert (again["verdict"], again["ok"]) == ("PASS", True), again["said"]
    assert again["flips"] <= 4, "of 200, where two answers are as good as equal"
    assert again["largest_difference"] < 1, "other batches round differently, by less than any margin"


def test_noised_weights_are_noticed_by_every_task(tried: FinishedRun) -> None:
    noised = found(tried)["noised"]
    assert (noised["verdict"], noised["noticed_by"]) == ("FAIL", ["capitals_choice", "capitals_open"])


def test_a_collapse_onto_one_answer_is_noticed_only_where_an_answer_is_asked_for(tried: FinishedRun) -> None:
    collapsed = found(tried)["one-answer"]
    assert (collapsed["verdict"], collapsed["noticed_by"]) == ("FAIL", ["capitals_open"])
    assert "not by capitals_choice" in collapsed["said"]


def test_damaged_adapters_are_no_members_of_the_fleet(tried: FinishedRun) -> None:
    (idle,) = tried.summary["adapters"]
    assert idle["name"] == "idle" and idle["verdict"] != "PASS"


def found(run: FinishedRun) -> dict[str, dict]:
    return {one["kind"]: one for one in run.summary["self_tests"]}
