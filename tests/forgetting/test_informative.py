"""Tasks that could not notice forgetting are no evidence that there was none; what they lose still counts."""

import numpy as np
import pytest
from scipy.stats import binom

from tasks.forgetting.informative import uninformative
from tasks.forgetting.verdict import compare


def right(count, n):
    return np.arange(n) < count


CASES = [
    # right, documents, margin, chance; why not
    (100, 200, 0.05, None, ""),
    (100, 200, 0.05, 0.25, ""),
    (11, 200, 0.05, None, ""),
    (10, 200, 0.05, None, "the base has 10 of 200 right, so no drop of more than 5 points could show"),
    (0, 200, 0.05, None, "the base has 0 of 200 right, so no drop of more than 5 points could show"),
    (
        60,
        200,
        0.05,
        0.25,
        "the base has 60 of 200 right, where guessing has 25 %, so no drop of more than 5 points could show",
    ),
    (40, 200, 0.05, 0.25, "the base has 40 of 200 right, where guessing has 25 %"),
    (62, 200, 0.02, 0.25, ""),
    (59, 200, 0.02, 0.25, "the base has 59 of 200 right, which is not shown to be above guessing (25 %, p = 0.0"),
    (199, 200, 0.05, None, ""),
    (200, 200, 0.05, None, "the base has 200 of 200 right, all of them, so the task is too easy to show what is lost"),
]


@pytest.mark.parametrize(("count", "n", "margin", "chance", "why"), CASES)
def test_why_not(count, n, margin, chance, why):
    note = uninformative(right(count, n).astype(float), margin, chance, 0.05)
    assert note.startswith(f"no evidence for a PASS: {why}") if why else note == ""


def test_above_guessing_is_the_binomial_tail():
    for count in range(40, 75):
        note = uninformative(right(count, 200).astype(float), 0.001, 0.25, 0.05)
        assert (note == "") == (binom.sf(count - 1, 200, 0.25) <= 0.05)


def judged(count, n, lost=0, **more):
    base = {f"d{i}": float(one) for i, one in enumerate(right(count, n))}
    adapter = base | {f"d{i}": 0.0 for i in range(lost)}
    arguments = {"task": "quiz", "role": "general", "metric": "acc", "margin": 0.05} | more
    return compare(base=base, adapter=adapter, **arguments)


def test_a_flawless_but_uninformative_task_does_not_pass():
    got = judged(300, 300)
    assert got.p_value < 1e-4
    assert (got.verdict, got.vote) == ("INCONCLUSIVE", False)
    assert got.reason == f"lost 0 and gained 0 of 300 documents; {got.note}"
    assert judged(299, 300).verdict == "PASS"
    assert judged(80, 300, chance=0.25).verdict == "INCONCLUSIVE"
    assert judged(80, 300).verdict == "PASS"


def test_its_losses_count():
    got = judged(300, 300, lost=60)
    assert (got.verdict, got.vote) == ("FAIL", False)
    assert "a drop of more than 5 points is shown (p < 0.001)" in got.reason


def test_only_right_wrong_general_tasks_are_asked():
    assert judged(0, 300, role="target").vote
    graded = {f"d{i}": 0.0 for i in range(300)} | {"d0": 0.5}
    assert compare(task="t", role="general", metric="rouge", base=graded, adapter=graded, margin=0.05).vote


def test_where_lower_is_better_the_base_is_right_at_zero():
    assert judged(0, 300, higher_is_better=False).note.startswith("no evidence for a PASS: the base has 300 of 300 ri")
    assert judged(300, 300, higher_is_better=False).note.startswith("no evidence for a PASS: the base has 0 of 300 rig")


def test_a_divided_level_takes_no_vote_from_a_task():
    """Else a cure's candidates, or the first looks, would be spared the very task that fails the whole adapter."""
    strict = judged(23, 60, lost=8, chance=0.25, alpha=0.05 / 12)
    assert not strict.vote and judged(23, 60, lost=8, chance=0.25, alpha=0.05).vote
    assert judged(23, 60, lost=8, chance=0.25, alpha=0.05 / 12, alpha_of_run=0.05).vote
