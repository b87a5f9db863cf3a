"""How many documents would decide? The question behind every INCONCLUSIVE, and behind a recipe's choice of tasks.

`documents_needed` answers it for right/wrong scores from the normal approximation of Tango's score,
`documents_needed_continuous` for other scores from that of the t test, and `fewest_without_flips` says how many a task
needs if nothing changes on it. All are plans, not tests: good to a few percent. Margins and drops are base minus
adapter; a negative margin asks for a gain.
"""

import math

from scipy.stats import norm

from tasks.forgetting.continuous import MIN_DOCUMENTS
from tasks.forgetting.tango import restricted_gain_rate

POWER = 0.8  # chance, 0 to 1, that the planned number of documents decides


def documents_needed(
    margin: float, disagreement: float, *, drop: float = 0.0, alpha: float = 0.05, power: float = POWER
) -> int | None:
    """Documents with which right/wrong scores are told from `margin` with chance `power`; None if no number does.

    `margin` and the true `drop` are shares of documents, -1 to 1; `disagreement` is the share that flips either way,
    at least |drop|. The variance is Tango's restricted one under the margin, the plain one at the drop (Liu et al.
    2002, Stat. Med. 21:231).
    """
    gain_rate = restricted_gain_rate((disagreement + drop) / 2, (disagreement - drop) / 2, 1, margin)
    under_margin = math.sqrt(max(0.0, 2 * float(gain_rate) + margin * (1 - margin)))
    as_it_is = math.sqrt(max(0.0, disagreement - drop**2))
    return _documents(norm.isf(alpha) * under_margin + norm.ppf(power) * as_it_is, margin - drop)


def documents_needed_continuous(
    margin: float, sd: float, *, drop: float = 0.0, alpha: float = 0.05, power: float = POWER
) -> int | None:
    """The same for scores whose drop has standard deviation `sd`; all three in units of the score."""
    needed = _documents((norm.isf(alpha) + norm.ppf(power)) * sd, margin - drop)
    return None if needed is None else max(MIN_DOCUMENTS, needed)


def fewest_without_flips(margin: float, alpha: float = 0.05) -> int:
    """Documents a right/wrong task needs to decide on `margin` (above 0, below 1) exactly when none of them flips.

    If a share `margin` of all documents were lost, n of them would still show no flip with probability
    (1 - margin)^n: that must not exceed `alpha`.
    """
    return math.ceil(math.log(alpha) / math.log1p(-margin))


def _documents(spread: float, distance: float) -> int | None:
    """Documents at which `spread` / sqrt(n) has shrunk to `distance`."""
    return None if abs(distance) < 1e-9 else max(1, math.ceil((float(spread) / distance) ** 2))
