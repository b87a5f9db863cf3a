"""Did a task with right/wrong scores drop by less than a margin? Tango's score test for paired documents.

A drop is base minus adapter. Of `n` documents `lost` are right under the base alone, `gained` under the adapter
alone; the drop they show is (lost - gained) / n. The usual paired tests take their variance from these counts, so no
flips means no variance and ten documents prove anything. Tango's takes it under the hypothesis that the drop *is* the
margin, which leaves a variance even then. Neither scipy nor statsmodels has it, hence this file.

`score` is the statistic; `p_non_inferior` and `p_breach` are the two one-sided tests, exact where that is affordable;
`interval` inverts the score. A negative margin asks for a gain: superiority by g is `p_non_inferior(..., -g)`, which is
the breach test with lost and gained swapped.

Tango 1998, Stat. Med. 17:891 (score, interval); Hsueh, Liu, Chen 2001, Biometrics 57:478 (exact unconditional test,
and that its worst case lies on the margin); Liu, Hsueh, Hsieh, Chen 2002, Stat. Med. 21:231.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import bdtr, gammaln, xlog1py, xlogy
from scipy.stats import norm

from infra.errors import RequestError

EXACT_UP_TO = 1000  # documents; beyond it the p-values are asymptotic

_TIE = 1e-9  # scores this close are one outcome seen through rounding; counting both can only raise a p-value
_NEGLIGIBLE = 1e-17  # probability of a row of outcomes that is left out of a sum of at most 1001 rows
_PEAKS, _REFINEMENTS = 4, 4  # how many peaks are climbed, and in how many steps, each eight times finer
_EDGE = 1 - 1e-12  # a drop lies strictly between -1 and 1

Floats = NDArray[np.float64]


def restricted_gain_rate(lost: ArrayLike, gained: ArrayLike, n: ArrayLike, margin: float) -> Floats:
    """Most likely share of gained documents if the drop is exactly `margin` (0 to 1); broadcasts over the counts."""
    if margin < 0:  # the mirrored problem: its share of lost documents, by a root that never cancels
        return restricted_gain_rate(gained, lost, n, -margin) - margin
    b, c, n = (np.asarray(count, dtype=np.float64) for count in (lost, gained, n))
    linear = -(b + c) + (2 * n - b + c) * margin
    return (np.sqrt(linear**2 + 8 * n * c * margin * (1 - margin)) - linear) / (4 * n)


def score(lost: ArrayLike, gained: ArrayLike, n: float, margin: float) -> Floats:
    """Tango's T: about standard normal if the drop is `margin`, smaller if it is less. No flips at margin 0 give 0."""
    if margin < 0:
        return -score(gained, lost, n, -margin)
    variance = n * (2 * restricted_gain_rate(lost, gained, n, margin) + margin * (1 - margin))
    excess = np.asarray(lost, dtype=np.float64) - np.asarray(gained, dtype=np.float64) - n * margin
    return np.divide(excess, np.sqrt(variance), out=np.zeros_like(variance), where=variance > 0)


def p_asymptotic(lost: int, gained: int, n: int, margin: float) -> float:
    """P-value of "the drop is below `margin`" by the normal distribution."""
    _check(lost, gained, n, margin)
    return float(norm.cdf(score(lost, gained, n, margin)))


def p_exact(lost: int, gained: int, n: int, margin: float) -> float:
    """P-value of "the drop is below `margin`", exact and unconditional.

    The largest probability, over every share of gained documents that a drop of `margin` allows, of a score no larger
    than the one observed. Accurate to about 1e-9; seconds grow with n to the power 1.5.
    """
    _check(lost, gained, n, margin)
    most_lost = _most_lost(float(score(lost, gained, n, margin)), n, margin)
    lowest, highest = max(0.0, -margin), (1 - margin) / 2

    def tail(angle: Floats) -> Floats:
        return _tail(lowest + (highest - lowest) * np.sin(angle) ** 2, most_lost, margin)

    return min(1.0, _maximum(tail, n))


def p_non_inferior(lost: int, gained: int, n: int, margin: float) -> float:
    """P-value of "the drop is below `margin`" (-1 to 1, a share of documents); exact up to `EXACT_UP_TO` documents."""
    return (p_exact if n <= EXACT_UP_TO else p_asymptotic)(lost, gained, n, margin)


def p_breach(lost: int, gained: int, n: int, margin: float) -> float:
    """P-value of "the drop is above `margin`": the same test seen from the base's side."""
    return p_non_inferior(gained, lost, n, -margin)


def interval(lost: int, gained: int, n: int, alpha: float) -> tuple[float, float]:
    """Bounds of the drop at confidence 1 - 2 `alpha`: the margins whose score lies within the normal quantiles.

    It is asymptotic at every n, so close to a margin the exact p-value may disagree; the p-value decides.
    """
    _check(lost, gained, n, 0.0)
    return bounds(float(norm.isf(alpha)), lost, gained, n)


def bounds(quantile: float, lost: float, gained: float, n: float) -> tuple[float, float]:
    """Bounds of the drop whose scores are `quantile` and its negative; the counts may be fractions."""

    def scores(margin: float) -> float:
        return float(score(lost, gained, n, margin))

    return margin_of(quantile, scores), margin_of(-quantile, scores)


def margin_of(value: float, scores: Callable[[float], float]) -> float:
    """The margin, -1 to 1, at which a score that falls as the margin grows equals `value`."""

    def excess(margin: float) -> float:
        return scores(margin) - value

    if excess(-_EDGE) <= 0:
        return -1.0
    if excess(_EDGE) >= 0:
        return 1.0
    return float(brentq(excess, -_EDGE, _EDGE, xtol=1e-13))


def _maximum(tail: Callable[[Floats], Floats], n: int) -> float:
    """Largest value of `tail` over angles from 0 to pi/2, where the tail may have several peaks."""
    # On this arcsine scale the tail bends no faster than the observed shares would, over about 1/sqrt(n): the grid has
    # several points on every peak, and only peaks close to the highest can turn out to be higher.
    angles = np.linspace(0, math.pi / 2, max(64, math.ceil(3 * math.pi * math.sqrt(n))))
    tails = tail(angles)
    worst = float(tails.max())
    walled = np.concatenate([[-1.0], tails, [-1.0]])
    peaks = np.flatnonzero((tails >= walled[:-2]) & (tails >= walled[2:]) & (tails >= 0.95 * worst))
    for peak in peaks[np.argsort(-tails[peaks])][:_PEAKS]:
        low, high = angles[max(peak - 1, 0)], angles[min(peak + 1, len(angles) - 1)]
        for _ in range(_REFINEMENTS):
            near = np.linspace(low, high, 17)
            heights = tail(near)
            top = int(heights.argmax())
            worst = max(worst, float(heights[top]))
            low, high = near[max(top - 1, 0)], near[min(top + 1, 16)]
    return worst


def _most_lost(observed: float, n: int, margin: float) -> NDArray[np.int64]:
    """For 0..n gained documents, the most lost ones that score no more than `observed`; -1 for none. Shape (n + 1,)."""
    gained = np.arange(n + 1)
    below, above = np.full(n + 1, -1), n - gained + 1  # the score grows with the lost documents: bisect every row
    while (above - below > 1).any():
        middle = (below + above) // 2
        fits = (middle >= 0) & (score(np.maximum(middle, 0), gained, n, margin) <= observed + _TIE)
        below, above = np.where(fits, middle, below), np.where(fits, above, middle)
    return below


def _tail(gain_rate: Floats, most_lost: NDArray[np.int64], margin: float) -> Floats:
    """Probability that the lost documents stay within `most_lost`, one per gain rate. Shapes (k,), (n + 1,) to (k,)."""
    n = len(most_lost) - 1
    gained, rate = np.arange(n + 1), gain_rate[:, None]
    choices = gammaln(n + 1) - gammaln(gained + 1) - gammaln(n - gained + 1)
    row = np.exp(choices + xlogy(gained, rate) + xlog1py(n - gained, -rate))  # P(gained), shape (k, n + 1)
    which, column = np.nonzero((row > _NEGLIGIBLE) & (most_lost >= 0))
    lost_rate = np.clip((gain_rate + margin) / (1 - gain_rate), 0, 1)  # among the documents that were not gained
    within = bdtr(most_lost[column].astype(np.float64), n - column, lost_rate[which])
    part = np.zeros_like(row)
    part[which, column] = row[which, column] * within
    return part.sum(axis=1)


def _check(lost: int, gained: int, n: int, margin: float) -> None:
    if not (n >= 1 and lost >= 0 and gained >= 0 and lost + gained <= n):
        raise RequestError(f"{lost} lost and {gained} gained documents do not fit into {n} compared ones")
    if not -1 < margin < 1:
        raise RequestError(f"a margin of {margin} is not a share of documents: it must lie between -1 and 1")
