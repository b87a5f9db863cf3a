"""What paired drops say about a margin: one record, whichever test the kind of score calls for.

Right/wrong scores go to Tango's test, all others to the tests for graded scores. A drop is larger when the adapter is
worse; a negative margin asks for a gain.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tasks.forgetting import clustered, continuous, tango
from tasks.forgetting.sample_size import documents_needed, documents_needed_continuous, fewest_without_flips

Floats = NDArray[np.float64]
Groups = NDArray[np.int64] | None


@dataclass(frozen=True)
class Evidence:
    """The two one-sided tests of a margin, the interval of the drop, and the documents that would decide."""

    p_below: float  # p-value of "the drop is below the margin", 0 to 1
    p_above: float  # p-value of "the drop is above the margin", 0 to 1
    interval: tuple[float, float]  # bounds of the drop at confidence 1 - 2 alpha
    needed: int | None  # documents that would decide if the drop is as observed; None if no number would
    too_few: str = ""  # why no verdict may rest on this many documents, if so
    lost: int = 0  # documents that only the base got right
    gained: int = 0  # documents that only the adapter got right
    grouping: clustered.Grouping | None = None  # how the documents hang together; None if each stands alone


def from_right_wrong(drops: Floats, margin: float, alpha: float, groups: Groups = None) -> Evidence:
    """Evidence from drops of 1, 0 or -1, one per document; `margin` is a share of documents between -1 and 1.

    `groups` has the number of each document's group, from 0, where documents belong together.
    """
    n, lost, gained = len(drops), int((drops > 0).sum()), int((drops < 0).sum())
    needed = documents_needed(margin, (lost + gained) / n, drop=(lost - gained) / n, alpha=alpha)
    if margin and not lost and not gained:
        needed = fewest_without_flips(abs(margin), alpha)
    if groups is not None:
        return _grouped(
            Evidence(
                p_below=clustered.p_right_wrong(drops, groups, margin),
                p_above=clustered.p_right_wrong(-drops, groups, -margin),
                interval=clustered.interval_right_wrong(drops, groups, alpha),
                needed=needed,
                lost=lost,
                gained=gained,
            ),
            clustered.grouping(drops, groups),
            n,
        )
    return Evidence(
        p_below=tango.p_non_inferior(lost, gained, n, margin),
        p_above=tango.p_breach(lost, gained, n, margin),
        interval=tango.interval(lost, gained, n, alpha),
        needed=needed,
        lost=lost,
        gained=gained,
    )


def from_graded(drops: Floats, margin: float, alpha: float, groups: Groups = None) -> Evidence:
    """Evidence from drops of any size, one per document, at least 2; `margin` is in units of the score."""
    n, least = len(drops), continuous.MIN_DOCUMENTS
    too_few = f"graded scores take at least {least} documents for a verdict" if n < least else ""
    needed = documents_needed_continuous(margin, float(drops.std()), drop=float(drops.mean()), alpha=alpha)
    if groups is not None:
        return _grouped(
            Evidence(
                p_below=clustered.p_graded(drops, groups, margin),
                p_above=clustered.p_graded(-drops, groups, -margin),
                interval=clustered.interval_graded(drops, groups, alpha),
                needed=needed,
                too_few=too_few,
            ),
            clustered.grouping(drops, groups),
            n,
        )
    return Evidence(
        p_below=continuous.p_non_inferior(drops, margin),
        p_above=continuous.p_breach(drops, margin),
        interval=continuous.interval(drops, alpha),
        needed=needed,
        too_few=too_few,
    )


def _grouped(evidence: Evidence, found: clustered.Grouping, n: int) -> Evidence:
    """The same evidence, with what the groups of its `n` documents cost."""
    least, needed = clustered.MIN_CLUSTERS, evidence.needed
    if needed is not None:
        needed = max(math.ceil(needed * found.design_effect), math.ceil(least * n / found.clusters))
    too_few = evidence.too_few
    if found.clusters < least:
        too_few = f"{found.clusters} groups of documents are too few for a verdict, which takes at least {least}"
    return replace(evidence, needed=needed, too_few=too_few, grouping=found)
