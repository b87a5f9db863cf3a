"""Verdicts of single tasks: what passes, what fails, what stays open, and in which words."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks.forgetting.reason import explain
from tasks.forgetting.verdict import Flips, TaskVerdict, compare, labelled
from tests.forgetting.records import binary, flips, nll

REASONS = [
    (
        "general",
        (3, 1, 100, 0.05),
        "INCONCLUSIVE",
        "lost 3 and gained 1 of 100 documents; a drop of 5 points cannot be ruled out (p = 0.130); "
        "at these rates about 365 documents would settle it",
    ),
    (
        "general",
        (0, 0, 10, 0.05),
        "INCONCLUSIVE",
        "lost 0 and gained 0 of 10 documents; a drop of 5 points cannot be ruled out (p = 0.599); "
        "at these rates about 59 documents would settle it",
    ),
    (
        "general",
        (5, 0, 100, 0.05),
        "INCONCLUSIVE",
        "lost 5 and gained 0 of 100 documents; a drop of 5 points cannot be ruled out (p = 0.616); "
        "at these rates no number of documents would settle it",
    ),
    (
        "general",
        (0, 0, 60, 0.05),
        "PASS",
        "lost 0 and gained 0 of 60 documents; a drop of 5 points or more is ruled out (p = 0.046)",
    ),
    (
        "general",
        (18, 2, 300, 0.02),
        "FAIL",
        "lost 18 and gained 2 of 300 documents; a drop of more than 2 points is shown (p = 0.011)",
    ),
    (
        "target",
        (1, 20, 100, 0.05),
        "PASS",
        "lost 1 and gained 20 of 100 documents; a gain of more than 5 points over the base is shown (p < 0.001)",
    ),
    (
        "target",
        (3, 1, 100, 0.05),
        "FAIL",
        "lost 3 and gained 1 of 100 documents; a gain of 5 points or more over the base is ruled out (p = 0.008)",
    ),
    (
        "target",
        (0, 9, 300, 0.05),
        "INCONCLUSIVE",
        "lost 0 and gained 9 of 300 documents; a gain of more than 5 points over the base is not shown (p = 0.966); "
        "at these rates about 631 documents would settle it",
    ),
    (
        "target",
        (0, 0, 10, 0.05),
        "INCONCLUSIVE",
        "lost 0 and gained 0 of 10 documents; a gain of more than 5 points over the base is not shown (p = 1.000); "
        "at these rates about 59 documents would settle it",
    ),
]


@pytest.mark.parametrize(("role", "data", "verdict", "reason"), REASONS)
def test_right_wrong_tasks(role, data, verdict, reason):
    got = binary(*data, role=role)
    assert (got.verdict, got.reason) == (verdict, reason)


def test_every_field_of_a_right_wrong_task():
    got = binary(3, 1, 100)
    assert json.loads(got.model_dump_json()) == {
        "task": "arc",
        "role": "general",
        "metric": "acc",
        "n": 100,
        "base": 0.51,
        "adapter": 0.49,
        "delta": -0.02,
        "ci_low": pytest.approx(-0.064191, abs=1e-6),  # the drop's interval, turned round
        "ci_high": pytest.approx(0.017372, abs=1e-6),
        "p_value": pytest.approx(0.129790, abs=1e-6),
        "p_breach": pytest.approx(0.906484, abs=1e-6),
        "margin": 0.05,
        "verdict": "INCONCLUSIVE",
        "flips": {"lost": 3, "gained": 1},
        "reason": got.reason,
        "decides": True,
        "tier": "critical",
        "vote": True,
        "note": "",
        "too_few": "",
        "needed": 365,
        "clusters": None,
        "design_effect": None,
        "sd": pytest.approx(0.2, abs=1e-9),  # 4 of 100 flipped, less the square of the mean
        "kl": None,
        "p_value_adjusted": None,
        "p_breach_adjusted": None,
        "kind": "right/wrong",
        "higher_is_better": True,
        "over": "the base",
    }


@pytest.mark.parametrize(
    ("role", "rise", "verdict", "words"),
    [
        ("general", 0.001, "PASS", "a rise of 0.01 or more is ruled out (p < 0.001)"),
        ("general", 0.020, "FAIL", "a rise of more than 0.01 is shown (p < 0.001)"),
        ("general", 0.009, "INCONCLUSIVE", "a rise of 0.01 cannot be ruled out (p = 0."),
        ("target", -0.020, "PASS", "a fall of more than 0.01 below the base is shown (p < 0.001)"),
        ("target", 0.001, "FAIL", "a fall of 0.01 or more below the base is ruled out (p < 0.001)"),
        ("target", -0.011, "INCONCLUSIVE", "a fall of more than 0.01 below the base is not shown (p = 0."),
    ],
)
def test_losses_worsen_upwards(role, rise, verdict, words):
    got = nll(rise, role=role)
    assert got.verdict == verdict
    assert words in got.reason
    assert got.reason.startswith(f"mean nll_per_token went from {got.base:.4g} to {got.adapter:.4g} over 400 documents")
    assert got.delta == pytest.approx(rise)
    assert got.ci_low < got.delta < got.ci_high
    assert got.flips == Flips(lost=0, gained=0)


def test_graded_scores_of_few_documents_are_never_decided():
    got = nll(0.0, margin=0.5, n=99)
    assert got.verdict == "INCONCLUSIVE"
    assert got.p_value < 1e-6
    assert "graded scores take at least 100 documents for a verdict; at these rates about 100 documents" in got.reason
    assert nll(0.0, margin=0.5, n=100).verdict == "PASS"
    assert nll(5.0, margin=0.5, n=99).verdict == "INCONCLUSIVE"


def test_a_plan_that_is_already_met_is_not_named():
    """The plan is a normal approximation, so the test itself may still be open at that many documents."""
    found = binary(3, 1, 100).model_copy(update={"p_value": 0.06, "needed": 100})
    assert explain(found).endswith("(p = 0.060); somewhat more documents would settle it")


def test_what_must_be_surpassed_has_a_name():
    got = binary(1, 20, 100, role="target", over="the prompt few-shot", kl=0.25)
    assert got.reason.endswith("a gain of more than 5 points over the prompt few-shot is shown (p < 0.001)")
    assert got.kl == 0.25


def test_labels_follow_adjusted_p_values_and_say_so():
    passed = binary(0, 0, 60)
    adjusted = passed.model_copy(update={"p_value_adjusted": 0.0921, "p_breach_adjusted": 1.0})
    got = labelled(adjusted, 0.05, (2, 3))
    assert (passed.verdict, got.verdict) == ("PASS", "INCONCLUSIVE")
    assert "cannot be ruled out (p = 0.046; p = 0.092 after Holm over 2 tests); somewhat more documents" in got.reason


def test_right_wrong_scores_where_lower_is_better():
    got = binary(20, 1, 100, higher_is_better=False)
    assert (got.verdict, got.flips, got.delta) == ("PASS", Flips(lost=1, gained=20), -0.19)
    assert "a rise of 5 points or more is ruled out" in got.reason
    assert got.ci_low < -0.19 < got.ci_high < 0


def test_booleans_are_right_wrong_scores():
    base, adapter = ({k: np.bool_(v) for k, v in s.items()} for s in flips(3, 1, 100).values())
    assert compare(task="arc", role="general", metric="acc", base=base, adapter=adapter, margin=0.05) == binary(
        3, 1, 100
    )


@given(st.integers(1, 1200), st.sampled_from([0.0, 0.01, 0.05, 0.5]))
@settings(max_examples=40, deadline=None)
def test_a_base_against_itself_never_fails(n, margin):
    assert binary(0, 0, n, margin=margin).verdict != "FAIL"
    same = {f"d{i}": 0.1 * (i % 7) for i in range(max(n, 2))}
    assert compare(task="t", role="general", metric="rouge", base=same, adapter=same, margin=margin).verdict != "FAIL"


@given(st.integers(0, 10), st.data())
@settings(max_examples=40, deadline=None)
def test_ten_documents_without_a_gain_never_pass_at_the_usual_margins(lost, data):
    gained = data.draw(st.integers(0, min(lost, 10 - lost)))
    margin = data.draw(st.sampled_from([0.01, 0.02, 0.05, 0.1]))
    assert binary(lost, gained, 10, margin=margin).verdict != "PASS"


def test_a_verdict_is_frozen_and_knows_its_fields():
    verdict = binary(0, 0, 60)
    with pytest.raises(ValidationError, match="frozen"):
        verdict.verdict = "FAIL"
    with pytest.raises(ValidationError, match="Extra inputs"):
        TaskVerdict(**verdict.model_dump(), p_vaule=0.1)
    assert TaskVerdict.model_validate_json(verdict.model_dump_json()) == verdict
