"""Did a task with graded scores (ROUGE, log-likelihood, loss per document) drop by less than a margin?

Differences of such scores are skewed: most documents hardly move and a few fall far. The t test then passes too
easily, exactly where forgetting hides. So a claim must satisfy two tests: Student's t and Hall's, which corrects t for
skewness by a monotone cubic (Hall 1992, J. R. Stat. Soc. B 54:221). Rank tests are no way out: they test a median.

Each function takes the drops, base minus adapter in the sense that larger is worse, one per document, in units of the
score. Below `MIN_DOCUMENTS` the p-values can still be computed but no verdict may rest on them.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from infra.errors import RequestError

MIN_DOCUMENTS = 100  # with fewer, skewness is not estimated well enough to be corrected for

_ROUNDING = 1e-12  # a spread below this share of the largest drop is floating-point noise

Floats = NDArray[np.float64]


def p_t(drops: Floats, margin: float) -> float:
    """P-value of "the mean drop is below `margin`" by Student's one-sided t test; the drops must vary."""
    n = len(drops)
    return float(student.cdf(math.sqrt(n) * (drops.mean() - margin) / drops.std(ddof=1), n - 1))


def p_hall(drops: Floats, margin: float) -> float:
    """The same by Hall's transformation of t; skewness is the population's, the rest is t's; the drops must vary."""
    n, centred = len(drops), drops - drops.mean()
    u, skewness = (drops.mean() - margin) / drops.std(ddof=1), (centred**3).mean() / drops.std() ** 3
    cubic = u + skewness * u**2 / 3 + skewness**2 * u**3 / 27 + skewness / (6 * n)
    return float(student.cdf(math.sqrt(n) * cubic, n - 1))


def p_non_inferior(drops: Floats, margin: float) -> float:
    """P-value of "the mean drop is below `margin`": the larger of the two tests'.

    Drops that are all alike, as when a model meets itself, have no spread to judge by. Then the argument for flawless
    right/wrong scores stands in: were the mean at the margin and no document able to exceed the others by more than
    one unit, a share of (margin - drop) of all documents would exceed them, and a sample of n would hold none of
    these with probability (1 - (margin - drop))^n.
    """
    _check(drops)
    if all_alike(drops):
        return min(1.0, max(0.0, 1 - (margin - float(drops.mean()))) ** len(drops))
    return max(p_t(drops, margin), p_hall(drops, margin))


def p_breach(drops: Floats, margin: float) -> float:
    """P-value of "the mean drop is above `margin`": the same test of the mirrored drops."""
    return p_non_inferior(-drops, -margin)


def interval(drops: Floats, alpha: float) -> tuple[float, float]:
    """Student's two-sided interval of the mean drop at confidence 1 - 2 `alpha`; never of width 0, as above."""
    _check(drops)
    n, mean = len(drops), float(drops.mean())
    if all_alike(drops):
        half = 1 - alpha ** (1 / n)
    else:
        half = float(student.isf(alpha, n - 1) * drops.std(ddof=1)) / math.sqrt(n)
    return mean - half, mean + half


def all_alike(drops: Floats) -> bool:
    return bool(np.ptp(drops) <= _ROUNDING * max(1.0, np.abs(drops).max()))


def _check(drops: Floats) -> None:
    if len(drops) < 2:
        raise RequestError(
            f"{len(drops)} document(s) with graded scores have no spread: an interval takes at least 2, "
            f"a verdict at least {MIN_DOCUMENTS}"
        )
