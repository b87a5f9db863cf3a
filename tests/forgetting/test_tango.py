"""Tango's score, both p-values and the interval: fixed vectors, and the laws that any counts obey."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import RequestError
from tasks.forgetting import tango

# lost, gained, n, margin; T, asymptotic p, exact p, exact p of a breach, 90 % interval of the drop
VECTORS = [
    (0, 0, 40, 0.05, -1.450953, 0.073397, 0.128512, 1.000000, -0.063353, 0.063353),
    (0, 0, 60, 0.05, -1.777047, 0.037780, 0.046070, 1.000000, -0.043147, 0.043147),
    (3, 1, 100, 0.05, -1.218020, 0.111608, 0.129790, 0.906484, -0.017372, 0.064191),
    (6, 4, 100, 0.05, -0.905992, 0.182470, 0.257839, 0.841646, -0.035550, 0.078256),
    (2, 5, 100, 0.02, -1.757379, 0.039427, 0.044401, 1.000000, -0.082324, 0.016066),
    (8, 7, 300, 0.02, -1.227652, 0.109789, 0.148510, 0.894417, -0.019315, 0.026402),
    (15, 15, 300, 0.05, -2.538145, 0.005572, 0.005871, 0.997668, -0.031075, 0.031075),
    (6, 0, 300, 0.02, 0.000000, 0.500000, 0.606308, 0.555945, 0.010377, 0.038204),
    (18, 2, 300, 0.02, 2.467107, 0.993190, 0.993590, 0.011041, 0.031366, 0.080889),
    (45, 40, 1000, 0.02, -1.601568, 0.054626, 0.055458, 0.962395, -0.010303, 0.020417),
]


@st.composite
def counts(draw: st.DrawFn, most: int = 80) -> tuple[int, int, int]:
    n = draw(st.integers(1, most))
    lost = draw(st.integers(0, n))
    return lost, draw(st.integers(0, n - lost)), n


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"{v[0]}-{v[1]}-of-{v[2]}-at-{v[3]}")
def test_vectors(vector):
    *data, t, p_asymptotic, p_exact, p_breach, low, high = vector
    lost, gained, n, _ = data
    got = [
        float(tango.score(*data)),
        tango.p_asymptotic(*data),
        tango.p_exact(*data),
        tango.p_breach(*data),
        *tango.interval(lost, gained, n, 0.05),
    ]
    assert got == pytest.approx([t, p_asymptotic, p_exact, p_breach, low, high], abs=6e-7)


def test_interval_of_the_example_in_r_contingencytables():
    assert tango.interval(6, 16, 161, 0.025) == pytest.approx((-0.1240, -0.0054), abs=5e-5)


@pytest.mark.parametrize("n", [1, 2, 7, 30])
@pytest.mark.parametrize("margin", [-0.9, -0.3, -0.02, 0.0, 0.001, 0.05, 0.5, 0.99])
def test_the_score_grows_with_lost_and_falls_with_gained(n, margin):
    """What lets the exact test find its outcomes by bisection, and lets the worst case lie on the margin."""
    gained, lost = np.indices((n + 1, n + 1))
    scores = np.where(lost + gained <= n, tango.score(lost, gained, n, margin), np.nan)
    assert np.nanmin(np.diff(scores, axis=1)) > -1e-12
    assert np.nanmax(np.diff(scores, axis=0)) < 1e-12


@given(counts(), st.floats(-0.95, 0.95), st.floats(-0.95, 0.95))
@settings(max_examples=100, deadline=None)
def test_a_wider_margin_is_never_harder_for_the_score(data, one, other):
    narrow, wide = sorted((one, other))
    assert tango.p_asymptotic(*data, wide) <= tango.p_asymptotic(*data, narrow) + 1e-9


@pytest.mark.parametrize("n", [5, 20, 60])
def test_what_passes_a_margin_exactly_passes_every_wider_one(n):
    """The exact p-value itself may rise a little as the margin widens, since its outcomes are ordered anew."""
    for lost in range(min(n, 7) + 1):
        for gained in range(min(n - lost, 7) + 1):
            passes = [tango.p_exact(lost, gained, n, margin) <= 0.05 for margin in (0.01, 0.02, 0.05, 0.1, 0.2, 0.3)]
            assert passes == sorted(passes)


@given(counts(), st.floats(-0.95, 0.95))
@settings(max_examples=100, deadline=None)
def test_swapping_the_models_mirrors_everything(data, margin):
    lost, gained, n = data
    assert tango.score(gained, lost, n, -margin) == pytest.approx(-tango.score(lost, gained, n, margin), abs=1e-9)
    assert tango.p_breach(gained, lost, n, -margin) == tango.p_non_inferior(lost, gained, n, margin)
    low, high = tango.interval(lost, gained, n, 0.05)
    assert tango.interval(gained, lost, n, 0.05) == pytest.approx((-high, -low), abs=1e-9)


@given(counts(), st.floats(-0.9, 0.9))
@settings(max_examples=60, deadline=None)
def test_a_claim_and_its_opposite_are_never_both_shown(data, margin):
    assert tango.p_non_inferior(*data, margin) + tango.p_breach(*data, margin) >= 1 - 1e-9


@given(counts(), st.sampled_from([0.0, 0.01, 0.05, 0.3]))
@settings(max_examples=60, deadline=None)
def test_superiority_is_the_breach_test_with_swapped_roles(data, gain):
    lost, gained, n = data
    assert tango.p_non_inferior(lost, gained, n, -gain) == tango.p_breach(gained, lost, n, gain)


def test_superiority_behaves():
    assert tango.p_breach(0, 0, 500, 0.0) == 1  # no flips never show a gain
    assert tango.p_breach(7, 7, 500, 0.0) == pytest.approx(1)  # the roles are swapped: first gained, then lost
    assert tango.p_breach(20, 1, 100, 0.0) < 0.001
    by_gain = [tango.p_breach(20, 1, 100, g) for g in (0.0, 0.05, 0.1, 0.19, 0.4)]
    assert by_gain == sorted(by_gain)
    assert by_gain[2] < 0.05 < 0.4 < by_gain[3]


@given(counts())
@settings(max_examples=60, deadline=None)
def test_the_interval_holds_the_drop_and_its_ends_score_the_quantiles(data):
    lost, gained, n = data
    low, high = tango.interval(lost, gained, n, 0.05)
    assert -1 <= low <= (lost - gained) / n <= high <= 1
    for end, value in ((low, 1.6448536), (high, -1.6448536)):
        assert abs(end) == 1 or float(tango.score(lost, gained, n, end)) == pytest.approx(value, abs=1e-5)


def test_beyond_a_thousand_documents_the_p_value_is_asymptotic():
    assert tango.p_non_inferior(45, 40, 1000, 0.02) == tango.p_exact(45, 40, 1000, 0.02)
    assert tango.p_non_inferior(45, 40, 1001, 0.02) == tango.p_asymptotic(45, 40, 1001, 0.02)
    assert tango.p_exact(45, 40, 1001, 0.02) == pytest.approx(tango.p_asymptotic(45, 40, 1001, 0.02), abs=0.004)


@pytest.mark.parametrize(("n", "seconds"), [(200, 0.1), (1000, 1.0)])
def test_the_exact_test_is_fast(n, seconds):
    start = time.process_time()
    tango.p_exact(n // 20, n // 25, n, 0.02)
    assert time.process_time() - start < seconds


@pytest.mark.parametrize("data", [(3, 2, 4), (-1, 0, 4), (0, -1, 4), (0, 0, 0)])
def test_counts_that_cannot_be_are_refused(data):
    with pytest.raises(RequestError, match=rf"{data[0]} lost and {data[1]} gained .* fit into {data[2]} compared"):
        tango.p_exact(*data, 0.05)


@pytest.mark.parametrize("margin", [1.0, -1.0, 5.0, float("nan")])
def test_margins_that_are_no_share_are_refused(margin):
    with pytest.raises(RequestError, match="between -1 and 1"):
        tango.p_asymptotic(1, 1, 10, margin)
