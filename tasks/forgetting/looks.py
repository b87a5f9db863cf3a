"""Looking at the data while they still arrive, without paying for it in false claims.

Whoever tests after every batch of documents and stops at the first p below alpha is wrong more often than alpha. So
each look gets a level of its own, and the whole of them adds up to alpha: Lan and DeMets' spending function of the
O'Brien-Fleming kind, which spends little early and leaves the last look almost the full level. Documents must come in
random order, the same number at each look.

Lan, DeMets 1983, Biometrika 70:659 (spending); O'Brien, Fleming 1979, Biometrics 35:549 (shape); Armitage, McPherson,
Rowe 1969, J. R. Stat. Soc. A 132:235 (the recursion below).
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm

from infra.errors import RequestError

Floats = NDArray[np.float64]

_NODES = 400  # points of the integral over the paths that have not stopped yet: levels to about 1e-12
_FAR = 12.0  # standard deviations beyond which a path has no probability worth counting
_NEVER = 38.0  # a bound that no path crosses: where the normal tail runs out of floating-point numbers


def spent(alpha: float, share: float) -> float:
    """How much of the one-sided `alpha` may be used up when this share (0 to 1) of the documents is in."""
    return float(2 * norm.sf(norm.isf(alpha / 2) / math.sqrt(share)))


def levels(alpha: float, looks: int) -> list[float]:
    """The one-sided level of each of `looks` equally spaced looks: at look k, p at or below it ends the matter.

    Under the hypothesis the chance to stop at any of them is `alpha`. One look has the whole of it.
    """
    if looks < 1 or not 0 < alpha < 0.5:
        raise RequestError(f"alpha {alpha} over {looks} look(s): take alpha between 0 and 0.5 and at least one look")
    if looks == 1:
        return [alpha]
    # A path is a sum of standard normal steps, one a look; `mass` weighs the points where those still on may be.
    points, mass = np.zeros(1), np.ones(1)
    abscissas, weights = np.polynomial.legendre.leggauss(_NODES)
    found, used = [], 0.0
    for look in range(1, looks + 1):
        goal, used = max(spent(alpha, look / looks) - used, 1e-300), spent(alpha, look / looks)
        deviation = math.sqrt(look)
        bound = float(brentq(_excess, 0.0, _NEVER * deviation, args=(points, mass, goal), xtol=1e-12))
        found.append(float(norm.sf(bound / deviation)))
        half = (min(bound, _FAR * deviation) + _FAR * deviation) / 2
        after = half * (abscissas + 1) - _FAR * deviation
        points, mass = after, half * weights * (norm.pdf(after[:, None] - points) @ mass)
    return found


def _excess(bound: float, points: Floats, mass: Floats, goal: float) -> float:
    """By how much the chance to step from `points` over `bound` exceeds `goal`."""
    return float(mass @ norm.sf(bound - points)) - goal
