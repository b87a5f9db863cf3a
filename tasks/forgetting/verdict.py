"""Did the adapter learn its task, and did it forget nothing? A verdict for each task, and from those for the adapter.

`compare` decides one task from the scores of base and adapter, document by document. A *general* task guards what the
base could do: it passes when a drop as large as its margin is ruled out. A *target* task is what the adapter was
trained for: it passes when a gain above its margin is shown. What the data leave open is INCONCLUSIVE, never a pass.
`judge` joins the tasks: an adapter passes only if every voting task does, which is why no level is divided among tasks
(intersection-union).

Not here yet: with many adapters in one run some false pass becomes likely. That correction, over adapters and over
the labels of single tasks, comes later; so do clustered documents and looks at data that are still coming in.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from infra.errors import Fault, RequestError
from tasks.forgetting.evidence import from_graded, from_right_wrong
from tasks.forgetting.pairing import paired
from tasks.forgetting.reason import explain

Outcome = Literal["PASS", "FAIL", "INCONCLUSIVE"]
Role = Literal["target", "general"]

# The direction in which a task's margin is measured, by role and by whether a higher score is better.
_CHANGE = {
    ("general", True): "drop",
    ("general", False): "rise",
    ("target", True): "gain",
    ("target", False): "fall",
}


class Flips(BaseModel):
    """Documents whose right/wrong score changed; none for graded scores."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lost: int = Field(ge=0, description="documents that only the base got right")
    gained: int = Field(ge=0, description="documents that only the adapter got right")


class TaskVerdict(BaseModel):
    """One adapter against its base on one task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    role: Role
    metric: str
    n: int = Field(ge=1, description="documents, each scored under both models")
    base: float = Field(description="mean score of the base, in units of the metric")
    adapter: float = Field(description="mean score of the adapter, in units of the metric")
    delta: float = Field(description="adapter minus base, in units of the metric")
    ci_low: float = Field(description="lower bound of delta at confidence 1 - 2 alpha, in units of the metric")
    ci_high: float = Field(description="upper bound of delta at confidence 1 - 2 alpha, in units of the metric")
    p_value: float = Field(ge=0, le=1, description="p-value of the claim that a PASS makes, 0 to 1")
    p_breach: float = Field(ge=0, le=1, description="p-value of the claim that a FAIL makes, 0 to 1")
    margin: float = Field(
        ge=0, description="worsening allowed (general) or gain wanted (target): share of documents, or metric units"
    )
    verdict: Outcome
    flips: Flips
    reason: str = Field(description="the verdict in one plain sentence, with its figures")
    decides: bool = Field(default=True, description="whether the task votes on the adapter or is only shown")


def compare(
    *,
    task: str,
    role: Role,
    metric: str,
    base: Mapping[str, float],
    adapter: Mapping[str, float],
    margin: float,
    alpha: float = 0.05,
    higher_is_better: bool = True,
    decides: bool = True,
) -> TaskVerdict:
    """Decide one task from the scores of base and adapter, each by document id.

    `margin` is a share of documents for right/wrong scores, else in units of the metric; for a loss per token,
    log(1 + x) nats let perplexity grow by the share x. `alpha` is the level of each one-sided test, above 0 and below
    0.5. Raises `RequestError` for arguments that make no test, `IntegrityError` for records that do not pair.
    """
    before, after = paired(task, base, adapter)
    right_wrong = bool(np.isin(before, (0, 1)).all() and np.isin(after, (0, 1)).all())
    _check(
        task=task,
        metric=metric,
        margin=margin,
        alpha=alpha,
        higher_is_better=higher_is_better,
        right_wrong=right_wrong,
    )
    gains = after - before if higher_is_better else before - after
    allowed = margin if role == "general" else -margin  # a wanted gain: the drop must stay below its negative
    evidence = (from_right_wrong if right_wrong else from_graded)(-gains, allowed, alpha)
    verdict: Outcome = "INCONCLUSIVE"
    if not evidence.too_few and evidence.p_below <= alpha:
        verdict = "PASS"
    elif not evidence.too_few and evidence.p_above <= alpha:
        verdict = "FAIL"
    n, flips = len(gains), Flips(lost=evidence.lost, gained=evidence.gained)
    if right_wrong:
        seen, size = f"lost {flips.lost} and gained {flips.gained} of {n} documents", f"{100 * margin:.3g} points"
    else:
        seen = f"mean {metric} went from {before.mean():.4g} to {after.mean():.4g} over {n} documents"
        size = f"{margin:.3g}"
    return TaskVerdict(
        task=task,
        role=role,
        metric=metric,
        n=n,
        base=float(before.mean()),
        adapter=float(after.mean()),
        delta=float((after - before).mean()),
        ci_low=0.0 - evidence.high if higher_is_better else evidence.low,
        ci_high=0.0 - evidence.low if higher_is_better else evidence.high,
        p_value=evidence.p_below,
        p_breach=evidence.p_above,
        margin=margin,
        verdict=verdict,
        flips=flips,
        reason=explain(
            evidence,
            seen=seen,
            role=role,
            verdict=verdict,
            change=_CHANGE[role, higher_is_better],
            size=size,
            n=n,
        ),
        decides=decides,
    )


def judge(verdicts: Sequence[TaskVerdict]) -> tuple[Outcome, list[str]]:
    """Join the tasks that vote into the adapter's verdict, with a sentence for each task that did not pass.

    FAIL if any failed; PASS if all passed and both roles voted; else INCONCLUSIVE.
    """
    voting = [v for v in verdicts if v.decides]
    reasons = [f"{v.verdict} on {v.role} task {v.task}: {v.reason}" for v in voting if v.verdict != "PASS"]
    for role, unproven in (("target", "learned its task"), ("general", "kept what the base could do")):
        if not any(v.role == role for v in voting):
            reasons.append(f"no {role} task votes, so nothing shows that the adapter {unproven}")
    if any(v.verdict == "FAIL" for v in voting):
        return "FAIL", reasons
    if reasons:
        return "INCONCLUSIVE", reasons
    learned, kept = ([v.task for v in voting if v.role == role] for role in ("target", "general"))
    return "PASS", [
        f"gained on {', '.join(learned)} and dropped on none of {', '.join(kept)} beyond the margins, "
        f"each shown on its own (largest p = {max(v.p_value for v in voting):.3f})"
    ]


def _check(*, task: str, metric: str, margin: float, alpha: float, higher_is_better: bool, right_wrong: bool) -> None:
    """Refuse arguments that make no test, all at once."""
    faults = []
    if not (math.isfinite(margin) and margin >= 0):
        faults.append(Fault(f"task {task}: margin {margin} must be a finite number, 0 or more"))
    elif right_wrong and margin >= 1:
        faults.append(
            Fault(f"task {task}: margin {margin} must be below 1: with right/wrong scores it is a share of documents")
        )
    if not 0 < alpha < 0.5:
        faults.append(Fault(f"task {task}: alpha {alpha} must lie between 0 and 0.5, for instance 0.05"))
    if metric.endswith("nll_per_token") and higher_is_better:
        faults.append(Fault(f"task {task}: {metric} is a loss: compare it with higher_is_better=False"))
    if faults:
        raise RequestError(faults)
