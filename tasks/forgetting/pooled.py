"""The general tasks taken together: has the adapter dropped on average?

Six tasks that each lose two points pass one by one at a margin of five. So their average drop has a smaller margin of
its own. Every task weighs the same: adding up documents would let a big task drown a small one. The statistic is
Tango's score for an average; each task's variance is taken under the hypothesis that its drop is the margin, so that
tasks without flips do not count as certain. Documents in groups count as many fewer.
"""

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy.stats import norm

from tasks.forgetting.outcome import TaskVerdict
from tasks.forgetting.reason import p, points
from tasks.forgetting.tango import margin_of, p_non_inferior, restricted_gain_rate

Counts = tuple[float, float, float]  # lost, gained, documents


class Pool(BaseModel):
    """The average drop over the right/wrong general tasks, each with the same weight."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_tasks: int = Field(ge=1, description="tasks averaged over")
    drop: float = Field(description="average drop, share of documents")
    ci_low: float = Field(description="lower bound of the drop at confidence 1 - 2 alpha")
    ci_high: float = Field(description="upper bound of the drop at confidence 1 - 2 alpha")
    margin: float = Field(gt=0, lt=1, description="average drop allowed, share of documents")
    z: float = Field(description="score of the margin: about standard normal if the average drop is the margin")
    p_value: float = Field(ge=0, le=1, description='p-value of "the average drop is below the margin"')

    def told(self, alpha: float) -> str:
        """The decision in a sentence."""
        ruled_out = "is ruled out" if self.p_value <= alpha else "cannot be ruled out"
        if self.drop < 0:
            said = f"over {self.n_tasks} general tasks the average rose by {points(-self.drop)}; a drop of "
        else:
            said = f"the drop over {self.n_tasks} general tasks is {points(self.drop)} on average; one of "
        return said + f"{points(self.margin)} or more {ruled_out} ({p(self.p_value)})"


def pool(tasks: Sequence[TaskVerdict], margin: float, alpha: float) -> Pool | None:
    """The pooled decision over those of an adapter's tasks that count; None if it could add nothing.

    Right/wrong general tasks count that vote and are critical or supporting. A critical task alone is decided by
    itself, at its own margin.
    """
    general = [t for t in tasks if t.role == "general" and t.kind == "right/wrong" and not t.too_few]
    counted = [t for t in general if t.votes and t.vote]
    if not counted or (len(counted) == 1 and counted[0].tier == "critical"):
        return None
    counts = [_counts(one) for one in counted]
    z, quantile = score(counts, margin), float(norm.isf(alpha))
    return Pool(
        n_tasks=len(counts),
        drop=float(np.mean([(lost - gained) / n for lost, gained, n in counts])),
        ci_low=margin_of(quantile, lambda at: score(counts, at)),
        ci_high=margin_of(-quantile, lambda at: score(counts, at)),
        margin=margin,
        z=z,
        p_value=max(float(norm.cdf(z)), _alone(counted[0], margin) if len(counted) == 1 else 0.0),
    )


def _alone(task: TaskVerdict, margin: float) -> float:
    """A single supporting task is held to its own exact test, as a critical one would be."""
    return 0.0 if task.clusters else p_non_inferior(task.flips.lost, task.flips.gained, task.n, margin)


def score(counts: Sequence[Counts], margin: float) -> float:
    """The pooled z of a margin between -1 and 1; it falls as the margin grows."""
    lost, gained, n = np.array(counts).T
    shares = 2 * restricted_gain_rate(lost, gained, n, margin) + margin * (1 - margin)
    variance = float((shares / n).sum()) / len(counts) ** 2
    return float(((lost - gained) / n).mean() - margin) / variance**0.5 if variance > 0 else 0.0


def _counts(task: TaskVerdict) -> Counts:
    deff = task.design_effect or 1.0
    return task.flips.lost / deff, task.flips.gained / deff, task.n / deff
