"""Documents that come in groups (questions on one passage, a subject's questions) know less than single ones.

What happens to one document of a group tends to happen to the others, so n documents say as much as n / deff
independent ones. The design effect deff is measured on the drops themselves: the variance of their mean with groups
(the "cluster-robust" one) over that without. A claim about documents in groups must satisfy three tests:

- the usual one on as many fewer documents, with t instead of the normal and one degree of freedom less than groups;
- the one for graded scores on the totals of the groups. If few groups fell, deff is itself a guess and too low as often
  as the drop looks too small: 30 passages of 20 questions, lost at a rate of 2 %, passed 15 % of the time by the first
  test alone. Hall's correction for skewness, which the second has, leaves 5 % (6 % where almost whole passages fall);
- the usual one on the documents as if independent: groups never make a claim easier.

Where no two drops differ, nothing can be measured. Then every group counts as one document, the least it can be worth:
thirty groups without a flip are thirty flawless documents, however many questions each has.

Liang, Zeger 1986, Biometrika 73:13 (variance); Rao, Scott 1992, Biometrics 48:577 (counts over the design effect).
Below `MIN_CLUSTERS` groups the variance is too uncertain to test with; no verdict may rest on it.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from tasks.forgetting import continuous, tango

MIN_CLUSTERS = 30

Floats = NDArray[np.float64]
Groups = NDArray[np.int64]  # the number of each document's group, from 0, none left out; shape (n,)


@dataclass(frozen=True)
class Grouping:
    """How the documents of a task hang together."""

    clusters: int
    error: float  # standard error of the mean drop, with groups or without, whichever is larger; 0 if all are alike
    design_effect: float  # documents that say together as much as one independent one, at least 1

    @property
    def freedom(self) -> int:
        """Degrees of freedom; a single group has none, and no verdict."""
        return max(self.clusters - 1, 1)


def grouping(drops: Floats, groups: Groups) -> Grouping:
    """Measured from drops of shape (n,)."""
    n, by_group = len(drops), totals(drops, groups)
    count = len(by_group)
    if continuous.all_alike(drops):
        return Grouping(count, 0.0, n / count)
    single = float(drops.var()) / n
    largest = max(single, float(by_group.var(ddof=1)) / count if count > 1 else 0.0)
    return Grouping(count, math.sqrt(largest), largest / single)


def totals(drops: Floats, groups: Groups) -> Floats:
    """One number a group, shape (G,): their mean is the drops', their standard error the cluster-robust one."""
    count = int(groups.max()) + 1
    away = np.bincount(groups, drops - drops.mean(), minlength=count)
    return drops.mean() + away * count / len(drops)


def p_right_wrong(drops: Floats, groups: Groups, margin: float) -> float:
    """P-value of "the drop is below `margin`" for drops of 1, 0 or -1."""
    found = grouping(drops, groups)
    n, lost, gained = len(drops), int((drops > 0).sum()), int((drops < 0).sum())
    deff = found.design_effect
    fewer = tango.score(lost / deff, gained / deff, n / deff, margin)
    return max(
        float(student.cdf(fewer, found.freedom)),
        _p_of_totals(drops, groups, margin),
        tango.p_non_inferior(lost, gained, n, margin),
    )


def interval_right_wrong(drops: Floats, groups: Groups, alpha: float) -> tuple[float, float]:
    """Bounds of the drop at confidence 1 - 2 `alpha`: Tango's on as many fewer documents, with t's quantile."""
    found = grouping(drops, groups)
    n, lost, gained = (count / found.design_effect for count in (len(drops), (drops > 0).sum(), (drops < 0).sum()))
    return tango.bounds(float(student.isf(alpha, found.freedom)), lost, gained, n)


def p_graded(drops: Floats, groups: Groups, margin: float) -> float:
    """P-value of "the mean drop is below `margin`" for drops of any size."""
    found = grouping(drops, groups)
    single = continuous.p_non_inferior(drops, margin)
    if found.error:
        single = max(single, float(student.cdf((drops.mean() - margin) / found.error, found.freedom)))
    return max(single, _p_of_totals(drops, groups, margin))


def interval_graded(drops: Floats, groups: Groups, alpha: float) -> tuple[float, float]:
    """Bounds of the mean drop at confidence 1 - 2 `alpha`: the wider of those with groups and without."""
    both = [continuous.interval(some, alpha) for some in (drops, totals(drops, groups)) if len(some) > 1]
    return min(low for low, _ in both), max(high for _, high in both)


def _p_of_totals(drops: Floats, groups: Groups, margin: float) -> float:
    by_group = totals(drops, groups)
    return continuous.p_non_inferior(by_group, margin) if len(by_group) > 1 else 1.0
