"""What a gate can see: the smallest change that so many documents show, and the documents that a margin needs.

All figures are for one task, a chance of `POWER` to decide, and the level alpha. A general task is planned for an
adapter that forgot nothing, so documents flip both ways alike; a target for a gain of any size above the wanted one.
The average of the general tasks has a margin of its own, and is often what wants the most documents.
They are plans (tasks/forgetting/sample_size.py), good to a few percent.
"""

import math
from collections.abc import Callable, Sequence

from scipy.stats import norm

from tasks.forgetting.sample_size import POWER, documents_needed, documents_needed_continuous, fewest_without_flips
from tasks.forgetting.tango import restricted_gain_rate

ASSUMED = 0.10  # share of documents that flip, before any run has measured it
_STEPS = 50  # halvings: exact to far below a document


def needed_right_wrong(margin: float, disagreement: float, alpha: float) -> int:
    """Documents with which an adapter that forgot nothing passes; both as shares of documents, `margin` above 0."""
    planned = documents_needed(margin, disagreement, alpha=alpha)
    return max(planned or 1, fewest_without_flips(margin, alpha))


def smallest_drop(documents: int, disagreement: float, alpha: float) -> float | None:
    """The smallest margin that `documents` settle, as a share of documents; None if they settle none."""
    return _smallest(lambda margin: needed_right_wrong(margin, disagreement, alpha) <= documents, 1.0)


def smallest_gain(documents: int, wanted: float, disagreement: float, alpha: float) -> float | None:
    """The smallest true gain by which `documents` show more than the gain `wanted`; None if even a full one is not.

    At least as many documents flip as the gain says.
    """

    def shown(beyond: float) -> bool:
        gain = wanted + beyond
        needed = documents_needed(-wanted, max(disagreement, gain), drop=-gain, alpha=alpha)
        return needed is not None and needed <= documents

    beyond = _smallest(shown, 1 - wanted)
    return None if beyond is None else wanted + beyond


def needed_graded(margin: float, sd: float, alpha: float) -> int:
    """The documents for scores whose difference has standard deviation `sd`; both in units of the score."""
    return documents_needed_continuous(margin, sd, alpha=alpha) or 1


def smallest_drop_graded(documents: int, sd: float, alpha: float) -> float | None:
    """The smallest margin that `documents` settle, in units of the score; None below the least number for a verdict."""
    widest = 100 * sd or 1.0
    return _smallest(lambda margin: needed_graded(margin, sd, alpha) <= documents, widest)


def needed_pooled(margin: float, tasks: Sequence[tuple[int, float]], alpha: float) -> int:
    """Documents in all, shared among `tasks` as they are now, with which their average passes `margin`.

    `tasks` are (documents, disagreement) of right/wrong scores, each task with the same weight. The spread of the
    average under the margin is that of the pooled score test, the plain one where nothing was forgotten.
    """
    variances = [
        2 * float(restricted_gain_rate(psi / 2, psi / 2, 1, margin)) + margin * (1 - margin) for _, psi in tasks
    ]
    under_margin = sum(variance / n for variance, (n, _) in zip(variances, tasks, strict=True))
    as_it_is = sum(psi / n for n, psi in tasks)
    spread = norm.isf(alpha) * math.sqrt(under_margin) + norm.ppf(POWER) * math.sqrt(as_it_is)
    return math.ceil(sum(n for n, _ in tasks) * (spread / len(tasks) / margin) ** 2)


def smallest_pooled_drop(tasks: Sequence[tuple[int, float]], alpha: float) -> float | None:
    """The smallest margin that these tasks settle on average."""
    return _smallest(lambda margin: needed_pooled(margin, tasks, alpha) <= sum(n for n, _ in tasks), 1.0)


def _smallest(enough: Callable[[float], bool], largest: float) -> float | None:
    """The least value up to `largest` that is enough, by bisection: what is enough stays so for larger values."""
    low, high = 0.0, largest * (1 - 1e-9)
    if not enough(high):
        return None
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
