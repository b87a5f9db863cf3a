"""Did the adapter learn its task, and did it forget nothing? The verdict on one task.

`compare` decides one task from the scores of base and adapter, document by document. A *general* task guards what the
base could do: it passes when a drop as large as its margin is ruled out. A *target* task is what the adapter was
trained for: it passes when a gain above its margin is shown. What the data leave open is INCONCLUSIVE, never a pass.

A task stands alone here. `family.judge_fleet` looks at all tasks of all adapters of a run together, labels them anew,
and joins them into each adapter's verdict.
"""

import math
from collections.abc import Mapping

import numpy as np

from infra.errors import Fault, RequestError
from tasks.forgetting.evidence import from_graded, from_right_wrong
from tasks.forgetting.informative import uninformative
from tasks.forgetting.outcome import Flips, Outcome, Role, TaskVerdict, Tier
from tasks.forgetting.pairing import grouped, paired
from tasks.forgetting.reason import explain

__all__ = ["Flips", "Outcome", "Role", "TaskVerdict", "Tier", "compare", "labelled"]


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
    tier: Tier = "critical",
    clusters: Mapping[str, str] | None = None,
    chance: float | None = None,
    kl: float | None = None,
    over: str = "the base",
    alpha_of_run: float | None = None,
) -> TaskVerdict:
    """Decide one task from the scores of base and adapter, each by document id.

    `margin` is a share of documents for right/wrong scores, else in units of the metric; for a loss per token,
    log(1 + x) nats let perplexity grow by the share x. `alpha` is the level of each one-sided test, above 0 and below
    0.5. `clusters` names the group of each document where documents belong together. `chance` is the score of guessing,
    0 to 1. `kl` is only carried along. `over` is what `base` is called where the gain of a target is told.
    `alpha_of_run` is the level before it was divided, if it was: whether the base knows enough to be a witness must not
    be harder to show because there are many looks or candidates, or the strictest gate would hear the fewest. Raises
    `RequestError` for arguments that make no test, `IntegrityError` for records that do not pair.
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
        chance=chance,
    )
    groups = None if clusters is None else grouped(task, base, clusters)
    gains = after - before if higher_is_better else before - after
    allowed = margin if role == "general" else -margin  # a wanted gain: the drop must stay below its negative
    evidence = (from_right_wrong if right_wrong else from_graded)(-gains, allowed, alpha, groups)
    note = ""
    if role == "general" and right_wrong:
        note = uninformative(before if higher_is_better else 1 - before, margin, chance, alpha_of_run or alpha)
    low, high = evidence.interval
    found = TaskVerdict(
        task=task,
        role=role,
        metric=metric,
        n=len(gains),
        base=float(before.mean()),
        adapter=float(after.mean()),
        delta=float((after - before).mean()),
        ci_low=0.0 - high if higher_is_better else low,
        ci_high=0.0 - low if higher_is_better else high,
        p_value=evidence.p_below,
        p_breach=evidence.p_above,
        margin=margin,
        verdict="INCONCLUSIVE",
        flips=Flips(lost=evidence.lost, gained=evidence.gained),
        reason="",
        decides=decides,
        tier=tier,
        vote=not note,
        note=note,
        too_few=evidence.too_few,
        needed=evidence.needed,
        clusters=evidence.grouping and evidence.grouping.clusters,
        design_effect=evidence.grouping and evidence.grouping.design_effect,
        sd=float(gains.std(ddof=1)) if len(gains) > 1 else None,
        kl=kl,
        kind="right/wrong" if right_wrong else "graded",
        higher_is_better=higher_is_better,
        over=over,
    )
    return labelled(found, alpha)


def labelled(found: TaskVerdict, alpha: float, among: tuple[int, int] = (1, 1)) -> TaskVerdict:
    """The same evidence with its verdict and reason at `alpha`; adjusted p-values decide, where there are any.

    `among` is how many claims they were adjusted over: those of a PASS, those of a FAIL.
    """
    p_pass = found.p_value if found.p_value_adjusted is None else found.p_value_adjusted
    p_fail = found.p_breach if found.p_breach_adjusted is None else found.p_breach_adjusted
    verdict: Outcome = "INCONCLUSIVE"
    if found.vote and not found.too_few and p_pass <= alpha:
        verdict = "PASS"
    elif not found.too_few and p_fail <= alpha:
        verdict = "FAIL"
    found = found.model_copy(update={"verdict": verdict})
    return found.model_copy(update={"reason": explain(found, among)})


def _check(
    *,
    task: str,
    metric: str,
    margin: float,
    alpha: float,
    higher_is_better: bool,
    right_wrong: bool,
    chance: float | None,
) -> None:
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
    if chance is not None and not 0 <= chance < 1:
        faults.append(Fault(f"task {task}: chance {chance} must be the score of guessing: 0 or more, below 1"))
    if metric.endswith("nll_per_token") and higher_is_better:
        faults.append(Fault(f"task {task}: {metric} is a loss: compare it with higher_is_better=False"))
    if faults:
        raise RequestError(faults)
