"""Planned documents against what enumeration says they achieve."""

import numpy as np
import pytest
from scipy.stats import binom

from tasks.forgetting import tango
from tasks.forgetting.sample_size import documents_needed, documents_needed_continuous, fewest_without_flips
from tests.forgetting.test_false_pass import exact_critical_score, probability

# margin, share that flips; documents planned, documents with which the score test passes 80 % at no drop
TABLE = [
    (0.01, 0.02, 1397, 1326),
    (0.01, 0.05, 3162, 3137),
    (0.01, 0.10, 6215, 6212),
    (0.01, 0.20, 12378, 12377),
    (0.02, 0.02, 425, 401),
    (0.02, 0.05, 837, 811),
    (0.02, 0.10, 1578, 1571),
    (0.02, 0.20, 3104, 3102),
    (0.03, 0.02, 225, 206),
    (0.03, 0.05, 400, 381),
    (0.03, 0.10, 717, 705),
    (0.03, 0.20, 1386, 1387),
    (0.05, 0.02, 107, 90),
    (0.05, 0.05, 167, 158),
    (0.05, 0.10, 274, 263),
    (0.05, 0.20, 507, 502),
]


def power(n, margin, flips):
    """Chance that Tango's score passes at no drop."""
    gained, lost = np.indices((n + 1, n + 1))
    with np.errstate(invalid="ignore"):
        passes = (lost + gained <= n) & (tango.score(lost, gained, n, margin) <= -1.6448536)
    rows = np.arange(n + 1)
    chance = binom.pmf(rows, n - rows[:, None], flips / 2 / (1 - flips / 2))
    return (binom.pmf(rows, n, flips / 2) * np.where(passes, chance, 0).sum(axis=1)).sum()


@pytest.mark.parametrize(("margin", "flips", "planned", "enough"), TABLE)
def test_the_plan_is_close_to_what_is_enough(margin, flips, planned, enough):
    """Enough for the score test, that is; the plan allows for the exact one, which is stricter when few flip."""
    assert documents_needed(margin, flips) == planned
    assert 0.999 * enough <= planned <= 1.2 * enough


@pytest.mark.parametrize(("margin", "flips", "planned", "enough"), [row for row in TABLE if row[2] < 850])
def test_the_power_is_what_the_table_says(margin, flips, planned, enough):
    assert power(enough, margin, flips) >= 0.8
    assert power(planned, margin, flips) >= 0.8


@pytest.mark.parametrize(("flips", "percent"), [(0.02, 84.6), (0.05, 80.9), (0.10, 80.5)])
def test_the_plan_suits_the_exact_test(flips, percent):
    n = documents_needed(0.05, flips)
    gained, lost = np.indices((n + 1, n + 1))
    scores = np.where(lost + gained <= n, tango.score(lost, gained, n, 0.05), np.inf)
    passes = scores <= exact_critical_score(scores, n, 0.05)
    assert 100 * probability(passes, n, flips / 2, 0.0) == pytest.approx(percent, abs=0.051)


@pytest.mark.parametrize(("margin", "fewest"), [(0.01, 299), (0.02, 149), (0.03, 99), (0.05, 59)])
def test_fewest_without_flips(margin, fewest):
    assert fewest_without_flips(margin) == fewest
    assert tango.p_exact(0, 0, fewest, margin) <= 0.05 < tango.p_exact(0, 0, fewest - 1, margin)


def test_an_observed_drop_moves_the_plan():
    assert documents_needed(0.05, 0.04, drop=0.02) > documents_needed(0.05, 0.04) > documents_needed(0.10, 0.04)
    assert documents_needed(0.05, 0.04, drop=-0.02) < documents_needed(0.05, 0.04)
    assert documents_needed(0.02, 0.02, drop=0.02) is None
    assert documents_needed(0.0, 0.1) is None
    assert documents_needed(-0.05, 0.1, drop=-0.02) == documents_needed(0.05, 0.1, drop=0.02)  # a wanted gain


def test_power_and_level_cost_documents():
    usual = documents_needed(0.05, 0.1)
    assert documents_needed(0.05, 0.1, power=0.9) > usual
    assert documents_needed(0.05, 0.1, alpha=0.01) > usual


def test_graded_scores():
    assert documents_needed_continuous(0.05, 0.5) == 619  # ((1.6449 + 0.8416) 0.5 / 0.05)^2
    assert documents_needed_continuous(0.05, 0.01) == 100
    assert documents_needed_continuous(0.05, 0.5, drop=0.05) is None
