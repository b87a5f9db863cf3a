"""The exact p-value against a second implementation that shares nothing with the first.

Restricted estimates come from the roots of the likelihood's derivative rather than Tango's closed form, the score from
its definition, the tail from a sum over every outcome, the worst case from a dense grid.
"""

import math
from functools import cache

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import xlogy

from tasks.forgetting import tango

TIE = 1e-6


def bounds(margin):
    return max(0.0, -margin), (1 - margin) / 2


def restricted_gain_rate(b, c, n, margin):
    low, high = bounds(margin)
    lose, keep = np.poly1d([1, margin]), np.poly1d([-2, 1 - margin])
    gain = np.poly1d([1, 0])
    derivative = b * gain * keep + c * lose * keep - 2 * (n - b - c) * gain * lose
    roots = [r.real for r in np.atleast_1d(derivative.roots) if abs(r.imag) < 1e-6]
    candidates = [min(max(r, low), high) for r in roots] + [low, high]

    def likelihood(q):
        return xlogy(b, max(q + margin, 0)) + xlogy(c, q) + xlogy(n - b - c, max(1 - 2 * q - margin, 0))

    return max(candidates, key=likelihood)


def score(b, c, n, margin):
    q = restricted_gain_rate(b, c, n, margin)
    variance = n * (2 * q + margin - margin**2)
    return (b - c - n * margin) / math.sqrt(variance) if variance > 1e-12 else 0.0


@cache
def outcomes(n, margin):
    cells = [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]
    b, c = np.array(cells).T
    factorial = np.array([math.factorial(i) for i in range(n + 1)], dtype=float)
    ways = factorial[n] / (factorial[b] * factorial[c] * factorial[n - b - c])
    return b, c, ways, np.array([score(*cell, n, margin) for cell in cells])


def brute_force(lost, gained, n, margin):
    b, c, ways, scores = outcomes(n, margin)
    counted = scores <= score(lost, gained, n, margin) + TIE
    b, c, ways = b[counted], c[counted], ways[counted]

    def tail(q):
        q = np.asarray(q, dtype=float)[..., None]
        lose, keep = np.maximum(q + margin, 0), np.maximum(1 - 2 * q - margin, 0)
        return (ways * lose**b * q**c * keep ** (n - b - c)).sum(axis=-1)

    grid = np.linspace(*bounds(margin), 2001)
    values = tail(grid)
    top = int(values.argmax())
    around = (grid[max(top - 1, 0)], grid[min(top + 1, 2000)])
    best = minimize_scalar(lambda q: -float(tail(q)), bounds=around, method="bounded", options={"xatol": 1e-10})
    return min(1.0, max(values[top], -best.fun))


@given(st.data(), st.integers(1, 12), st.sampled_from([-0.4, -0.1, -0.02, 0.0, 0.01, 0.05, 0.1, 0.3, 0.7]))
@settings(max_examples=150, deadline=None)
def test_two_implementations_agree(data, n, margin):
    lost = data.draw(st.integers(0, n))
    gained = data.draw(st.integers(0, n - lost))
    assert abs(float(tango.score(lost, gained, n, margin)) - score(lost, gained, n, margin)) < 1e-6
    assert abs(tango.p_exact(lost, gained, n, margin) - brute_force(lost, gained, n, margin)) < 1e-7
    assert abs(tango.p_breach(lost, gained, n, margin) - brute_force(gained, lost, n, -margin)) < 1e-7


def test_the_worst_case_between_two_near_equal_peaks_is_found():
    """195 lost, 202 gained of 675: climbing only the highest grid point of a coarser grid missed 6e-5."""
    n, margin = 675, 0.02
    most_lost = tango._most_lost(float(tango.score(195, 202, n, margin)), n, margin)
    dense = tango._tail(np.linspace(0, (1 - margin) / 2, 4001), most_lost, margin)
    assert tango.p_exact(195, 202, n, margin) >= dense.max() - 1e-9
