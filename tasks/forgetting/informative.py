"""Could this task have noticed forgetting at all? A task that could not must not count as proof that none happened.

Three ways not to notice: the base has so little right that it cannot lose as much as the margin; it has no more right
than guessing would, so that there is nothing to forget; or it has everything right, so that the questions are too easy
to show the first of what is lost. A drop that such a task shows all the same is still a drop.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from tasks.forgetting.reason import p, points


def uninformative(right: NDArray[np.float64], margin: float, chance: float | None, alpha: float) -> str:
    """Why a PASS of a right/wrong general task would be no evidence; "" if it would be.

    `right` is 1 where the base is right, else 0, shape (n,); `chance` is the share that guessing gets right, None if
    that is next to nothing. Whether the base is above it is tested at `alpha`.
    """
    n, count, floor = len(right), int(right.sum()), chance or 0.0
    said = f"the base has {count} of {n} right"
    if count == n:
        return f"no evidence for a PASS: {said}, all of them, so the task is too easy to show what is lost first"
    if count / n - floor <= margin + 1e-12:
        guessing = f", where guessing has {100 * floor:.3g} %" if floor else ""
        return f"no evidence for a PASS: {said}{guessing}, so no drop of more than {points(margin)} could show"
    if floor and (value := float(binomtest(count, n, floor, alternative="greater").pvalue)) > alpha:
        return (
            f"no evidence for a PASS: {said}, which is not shown to be above guessing ({100 * floor:.3g} %, {p(value)})"
        )
    return ""
