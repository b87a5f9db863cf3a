"""Was training worth it over prompting? Which pairs are compared, and the three answers."""

from typing import Any

import pytest

from infra.storage import ArtifactRef
from tasks.artifacts import AdapterOutcome, StageResult
from tasks.forgetting.comparison import over_prompting
from tasks.recipe.schema import Adapter

ROWS = {"rows": [{"prompt": "a", "completion": "b"}]}


def outcome(name: str, method: str, *, metric: str = "exact_match", **target: Any) -> AdapterOutcome:
    adapter = Adapter.model_validate({"name": name, "method": method, "data": ROWS, "target": target})
    task = {"task": f"{name}.{adapter.target.decides}", "metric": metric}
    return AdapterOutcome(adapter, "none", verdict={"verdict": None, "reasons": [], "tasks": [task]})


def data(**digests: str) -> dict[str, StageResult]:
    return {
        name: StageResult(
            ref=ArtifactRef(kind="datasets", name=name, digest=digest, uri="/"), facts={"train": 1}, cached=False
        )
        for name, digest in digests.items()
    }


def right(count: int, n: int = 100) -> dict[str, float]:
    return {f"document {number}": float(number < count) for number in range(n)}


@pytest.mark.parametrize(
    ("trained", "prompted", "answer"),
    [(80, 30, "yes"), (30, 80, "no"), (80, 80, "cannot tell"), (81, 80, "cannot tell")],
)
def test_the_answer_follows_the_paired_test(trained: int, prompted: int, answer: str) -> None:
    fleet = [outcome("tuned", "lora"), outcome("shown", "prompt")]
    scores = {("tuned", "tuned.held_out"): right(trained), ("shown", "shown.held_out"): right(prompted)}
    (one,) = over_prompting(fleet, data(tuned="d", shown="d"), lambda *key: scores[key], alpha=0.05)
    assert (one["adapter"], one["over"], one["task"], one["n"]) == ("tuned", "shown", "tuned.held_out", 100)
    assert (one["adapter_score"], one["over_score"]) == (trained / 100, prompted / 100)
    assert one["delta"] == pytest.approx((trained - prompted) / 100)
    assert one["ci_low"] <= one["delta"] <= one["ci_high"]
    assert one["flips"] == {"gained": max(trained - prompted, 0), "lost": max(prompted - trained, 0)}
    assert one["answer"] == answer


def test_a_lower_loss_is_the_better_one() -> None:
    fleet = [outcome("tuned", "full", metric="nll_per_token"), outcome("bare", "prompt", metric="nll_per_token")]
    lower, higher = ({f"d{number}": level + number % 7 / 100 for number in range(120)} for level in (1.0, 2.0))
    both = data(tuned="d", bare="d")
    (one,) = over_prompting(fleet, both, lambda name, _: lower if name == "tuned" else higher, alpha=0.05)
    assert one["answer"] == "yes" and one["delta"] == pytest.approx(-1)
    (one,) = over_prompting(fleet, both, lambda name, _: higher if name == "tuned" else lower, alpha=0.05)
    assert one["answer"] == "no"


def test_only_what_was_asked_the_same_is_compared() -> None:
    fleet = [
        outcome("tuned", "lora", gain=0.5),
        outcome("quantised", "qlora"),
        outcome("longer", "lora", max_new_tokens=99),
        outcome("elsewhere", "lora"),
        outcome("bare", "prompt"),
        outcome("shown", "prompt"),
    ]
    digests = {one.name: "d" for one in fleet} | {"elsewhere": "other rows"}
    found = over_prompting(fleet, data(**digests), lambda *_: right(50), alpha=0.05)
    assert [(one["adapter"], one["over"]) for one in found] == [
        (adapter, prompt) for adapter in ("tuned", "quantised") for prompt in ("bare", "shown")
    ]


def test_what_could_not_be_finished_is_not_compared() -> None:
    fleet = [outcome("tuned", "lora"), outcome("shown", "prompt")]
    fleet[0].error = "ran out of memory"
    assert over_prompting(fleet, data(tuned="d", shown="d"), lambda *_: right(50), alpha=0.05) == []
