"""Whom a cure makes sense for."""

import pytest

from tasks.artifacts import AdapterOutcome
from tasks.curing.cure import why_not
from tasks.recipe.schema import Adapter

ROWS = {"rows": [{"prompt": "a", "completion": "b"}], "held_out": 0}


def outcome(overall: str = "FAIL", method: str = "lora", **target: object) -> AdapterOutcome:
    adapter = Adapter.model_validate({"name": "one", "method": method, "data": ROWS})
    learned = {"task": "one.held_out", "role": "target", "decides": True, "too_few": "", "p_value": 0.01, **target}
    general = {"task": "quiz", "role": "general", "decides": True, "too_few": "", "p_value": 1.0, "verdict": "FAIL"}
    return AdapterOutcome(adapter, "none", verdict={"verdict": overall, "tasks": [learned, general]})


def test_one_that_learned_and_forgot_is_cured() -> None:
    assert why_not(outcome(), 0.05) is None


def test_its_gain_is_asked_at_the_level_of_the_run_not_of_a_look() -> None:
    assert why_not(outcome(p_value=0.04, verdict="INCONCLUSIVE"), 0.05) is None


@pytest.mark.parametrize(
    ("one", "why"),
    [
        (outcome("PASS"), "it did not fail its gate"),
        (outcome("INCONCLUSIVE"), "it did not fail its gate"),
        (outcome(method="full"), "method full has no adapter to scale"),
        (outcome(p_value=0.2), "it is not shown to have learned one.held_out"),
        (outcome(too_few="graded scores take at least 100 documents for a verdict"), "not shown to have learned"),
    ],
)
def test_others_are_not_and_are_told_why(one: AdapterOutcome, why: str) -> None:
    assert why in (why_not(one, 0.05) or "")
