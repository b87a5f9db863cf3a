"""What paired drops say about a margin: one record, whichever test the kind of score calls for.

Right/wrong scores go to Tango's test, all others to the tests for graded scores. A drop is larger when the adapter is
worse; a negative margin asks for a gain.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.forgetting import continuous, tango
from tasks.forgetting.sample_size import documents_needed, documents_needed_continuous, fewest_without_flips


@dataclass(frozen=True)
class Evidence:
    """The two one-sided tests of a margin, the interval of the drop, and the documents that would decide."""

    p_below: float  # p-value of "the drop is below the margin", 0 to 1
    p_above: float  # p-value of "the drop is above the margin", 0 to 1
    low: float  # bounds of the drop at confidence 1 - 2 alpha
    high: float
    needed: int | None  # documents that would decide if the drop is as observed; None if no number would
    too_few: str = ""  # why no verdict may rest on this many documents, if so
    lost: int = 0  # documents that only the base got right
    gained: int = 0  # documents that only the adapter got right


def from_right_wrong(drops: NDArray[np.float64], margin: float, alpha: float) -> Evidence:
    """Evidence from drops of 1, 0 or -1, one per document; `margin` is a share of documents between -1 and 1."""
    n, lost, gained = len(drops), int((drops > 0).sum()), int((drops < 0).sum())
    low, high = tango.interval(lost, gained, n, alpha)
    needed = documents_needed(margin, (lost + gained) / n, drop=(lost - gained) / n, alpha=alpha)
    if margin and not lost and not gained:
        needed = fewest_without_flips(abs(margin), alpha)
    return Evidence(
        p_below=tango.p_non_inferior(lost, gained, n, margin),
        p_above=tango.p_breach(lost, gained, n, margin),
        low=low,
        high=high,
        needed=needed,
        lost=lost,
        gained=gained,
    )


def from_graded(drops: NDArray[np.float64], margin: float, alpha: float) -> Evidence:
    """Evidence from drops of any size, one per document, at least 2; `margin` is in units of the score."""
    n = len(drops)
    low, high = continuous.interval(drops, alpha)
    least = continuous.MIN_DOCUMENTS
    return Evidence(
        p_below=continuous.p_non_inferior(drops, margin),
        p_above=continuous.p_breach(drops, margin),
        low=low,
        high=high,
        needed=documents_needed_continuous(margin, float(drops.std()), drop=float(drops.mean()), alpha=alpha),
        too_few=f"graded scores take at least {least} documents for a verdict" if n < least else "",
    )
