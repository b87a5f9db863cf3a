"""An adapter that learns and forgets,, and is made weaker until it passes."""

import json
from pathlib import Path

import pytest
import yaml

from tests.flows.conftest import FinishedRun
from tests.flows.recipes import write_own_task, write_tiny_recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cured(prefect_api: None, tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> FinishedRun:
    from flows.train_adapters import train_adapters

    folder = tmp_path_factory.mktemp("cured")
    recipe = write_tiny_recipe(folder, tiny_base)
    content = yaml.safe_load(recipe.read_text())
    learner = content["adapters"][0]
    shown = {
        "name": "shown",
        "method": "prompt",
        "num_fewshot": 1,
        "data": learner["data"],
        "target": learner["target"],
    }
    content["adapters"] = [{**learner, "name": "forgets", "target": {**learner["target"], "over": "shown"}}, shown]
    general = [{"task": "own_texts", "margin": 0.3}]
    own = write_own_task(folder, [f"{number} abc def {7 * number}" for number in range(110)])
    evaluation = {"batch_size": 8, "general": general, "include_path": str(own), "self_tests": False}
    evaluation["judge"] = {"model": str(tiny_base), "limit": 6}
    content |= {"method": "lora", "evaluation": evaluation}
    content |= {"cure": {"scales": [0.75, 0.25], "refine": 1}, "publish": {**content["publish"], "what": ["adapter"]}}
    recipe.write_text(yaml.safe_dump(content))
    summary = train_adapters(str(recipe), store=str(folder / "store"))
    return FinishedRun(folder, recipe, folder / "store", summary)


def test_the_largest_scale_that_passes_is_released(cured: FinishedRun) -> None:
    adapter, _ = cured.summary["adapters"]
    first, *tried = adapter["cure"]["curve"]
    assert (first["scale"], first["verdict"]) == (1.0, "FAIL"), first
    assert [point["scale"] for point in tried] == [0.75, 0.25, 0.5]
    passed = [point for point in tried if point["verdict"] == "PASS"]
    best = max(passed, key=lambda point: point["scale"])
    assert adapter["cure"]["kept"]["scale"] == best["scale"]
    assert (adapter["status"], adapter["verdict"], adapter["digest"]) == ("published", "PASS", best["digest"])
    rises = [point["general"][0]["delta"] for point in sorted([first, *tried], key=lambda point: point["scale"])]
    assert rises == sorted(rises), "the weaker the adapter, the less is forgotten"


def test_the_scale_stands_in_the_published_config_and_the_weights_are_the_trained_ones(cured: FinishedRun) -> None:
    adapter, _ = cured.summary["adapters"]
    (place,) = adapter["published"]
    config = json.loads((Path(place["uri"]) / "adapter_config.json").read_text())
    assert config["lora_alpha"] == 32 * adapter["cure"]["kept"]["scale"]
    weights = {path.read_bytes() for path in (cured.store / "adapters").glob("forgets-*/adapter_model.safetensors")}
    assert (Path(place["uri"]) / "adapter_model.safetensors").read_bytes() in weights and len(weights) == 1


def test_every_candidate_is_judged_at_its_share_of_alpha(cured: FinishedRun) -> None:
    """Two scales, and one above each of them: 0.05 / 4, whichever bisection comes to."""
    rules = []
    for path in (cured.store / "verdicts").glob("forgets.x*/verdict.json"):
        rules.append(json.loads(path.read_text())["rule"])
    assert len(rules) == 3 and all(rule["alpha"] == pytest.approx(0.05 / 4) for rule in rules)


def test_its_gain_is_over_the_prompt_before_the_cure_and_after(cured: FinishedRun) -> None:
    adapter, shown = cured.summary["adapters"]
    (target,) = (task for task in adapter["tasks"] if task["role"] == "target")
    assert (target["over"], target["n"], target["verdict"]) == ("shown", 12, "PASS")
    assert shown["status"] == "compared" and shown["cure"] is None


def test_the_released_answers_are_the_ones_that_are_judged(cured: FinishedRun) -> None:
    adapter, _ = cured.summary["adapters"]
    rate = adapter["win_rate"]
    assert rate["n"] == 6 == rate["wins"] + rate["losses"] + rate["ties"]
    assert rate["ci_low"] <= rate["win_rate"] <= rate["ci_high"]
    assert adapter["verdict"] == "PASS", "no gate looks at it"
