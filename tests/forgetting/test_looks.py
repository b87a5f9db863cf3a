"""Levels of repeated looks: fixed vectors, the multivariate normal as a second opinion, and refusals."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from infra.errors import RequestError
from tasks.forgetting.looks import levels, spent


@pytest.mark.parametrize(
    ("looks", "bounds"),
    [
        (1, [1.6449]),
        (3, [3.2001, 2.1408, 1.6948]),
        (5, [4.2292, 2.8881, 2.2981, 1.9618, 1.7397]),
    ],
)
def test_vectors(looks, bounds):
    assert norm.isf(levels(0.05, looks)) == pytest.approx(bounds, abs=5.1e-5)


def never_crossed(bounds):
    """Scores of samples that grow by equal parts are jointly normal with correlation sqrt(i / j)."""
    look = np.arange(1, len(bounds) + 1)
    correlation = np.sqrt(np.minimum.outer(look, look) / np.maximum.outer(look, look))
    return multivariate_normal(np.zeros(len(bounds)), correlation, seed=1, maxpts=10**6).cdf(bounds)


def test_one_look_has_the_whole_level():
    assert levels(0.05, 1) == [0.05]
    assert levels(0.0123, 1) == [0.0123]


@pytest.mark.parametrize(("alpha", "looks"), [(0.05, 2), (0.05, 3), (0.05, 5), (0.00625, 3), (0.2, 4)])
def test_each_look_spends_what_it_may(alpha, looks):
    bounds = norm.isf(levels(alpha, looks))
    for k in range(1, looks + 1):
        assert 1 - never_crossed(bounds[:k]) == pytest.approx(spent(alpha, k / looks), abs=2e-5)
    assert spent(alpha, 1.0) == pytest.approx(alpha)


@pytest.mark.parametrize("alpha", [1e-6, 0.001, 0.05, 0.4])
@pytest.mark.parametrize("looks", [2, 3, 10])
def test_little_is_spent_early_and_the_last_look_keeps_almost_all(alpha, looks):
    found = levels(alpha, looks)
    assert len(found) == looks
    assert all(a < b for a, b in pairwise(found))
    assert 0 < found[0] < alpha and 0.6 * alpha < found[-1] < alpha


@pytest.mark.parametrize(("alpha", "looks"), [(0.0, 3), (0.5, 3), (-1, 1), (0.05, 0)])
def test_what_makes_no_test_is_refused(alpha, looks):
    with pytest.raises(RequestError, match=rf"alpha {alpha} over {looks} look\(s\)"):
        levels(alpha, looks)


def test_holm_within_looks_is_a_known_limit():
    """Six independent tasks at their margins, each held at every look to a sixth of that look's level."""
    assert 1 - never_crossed(norm.isf(np.array(levels(0.05, 5)) / 6)) ** 6 == pytest.approx(0.053, abs=5e-4)
