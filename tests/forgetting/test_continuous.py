"""Graded scores: fixed vectors for both t tests and the interval, and drops without spread."""

import numpy as np
import pytest
from scipy import stats

from infra.errors import RequestError
from tasks.forgetting import continuous

I = np.arange(1, 101)  # noqa: E741
A = np.round(0.02 * np.sin(I) + 0.005, 6)
B = np.round(np.where(I % 10 == 0, 0.30, -0.01) + 0.01 * np.cos(I), 6)


@pytest.mark.parametrize(
    ("drops", "margin", "p_t", "p_hall", "low", "high"),
    [
        (A[:40], 0.01, 0.0419762, 0.0402749, 0.002101, 0.009798),
        (B[:40], 0.05, 0.0285416, 0.0840358, -0.003991, 0.045915),
        (B, 0.05, 0.00126479, 0.0122034, 0.005379, 0.036514),
    ],
)
def test_vectors(drops, margin, p_t, p_hall, low, high):
    assert continuous.p_t(drops, margin) == pytest.approx(p_t, abs=6e-8)
    assert continuous.p_hall(drops, margin) == pytest.approx(p_hall, abs=6e-8)
    assert continuous.p_non_inferior(drops, margin) == max(
        continuous.p_t(drops, margin), continuous.p_hall(drops, margin)
    )
    assert continuous.interval(drops, 0.05) == pytest.approx((low, high), abs=6e-7)


def test_the_t_test_is_scipys():
    result = stats.ttest_1samp(B, popmean=0.05, alternative="less")
    assert continuous.p_t(B, 0.05) == pytest.approx(result.pvalue, rel=1e-9)
    bounds = stats.ttest_1samp(B, popmean=0).confidence_interval(0.9)
    assert continuous.interval(B, 0.05) == pytest.approx(tuple(bounds), rel=1e-9)


def test_a_breach_is_the_mirrored_test():
    p = continuous.p_breach(B, 0.001)
    assert p == continuous.p_non_inferior(-B, -0.001)
    assert p < 0.05 < continuous.p_breach(B, 0.02)


def test_symmetric_drops_leave_t_as_it_is():
    drops = np.concatenate([A, -A])
    assert continuous.p_hall(drops, 0.002) == pytest.approx(continuous.p_t(drops, 0.002), abs=1e-9)


def test_drops_without_spread_are_judged_like_flawless_documents():
    none = np.zeros(100)
    assert continuous.p_non_inferior(none, 0.05) == pytest.approx(0.95**100)
    assert continuous.p_non_inferior(none, 0.01) == pytest.approx(0.99**100)
    assert continuous.p_breach(none, 0.0) == 1
    low, high = continuous.interval(none, 0.05)
    assert (low, high) == pytest.approx((0.05**0.01 - 1, 1 - 0.05**0.01))
    assert continuous.p_non_inferior(none, high) == pytest.approx(0.05)


def test_rounding_is_no_spread():
    drops = np.full(100, 0.1) + np.tile([0, 1e-16], 50)
    assert continuous.p_non_inferior(drops, 0.15) == pytest.approx(0.95**100)
    assert continuous.p_breach(drops, 0.05) == pytest.approx(0.95**100)


@pytest.mark.parametrize("test", [lambda d: continuous.p_non_inferior(d, 0.1), lambda d: continuous.interval(d, 0.05)])
def test_one_document_is_refused(test):
    with pytest.raises(RequestError, match=r"1 document\(s\) .* at least 2, a verdict at least 100"):
        test(np.array([0.3]))
