"""From the tasks of a whole fleet to one verdict for each adapter, with the number of claims made counted in.

The more claims a run tests, the surer one of them comes out by luck: at 6 tasks x 8 adapters a false one is the rule.
Three things are claimed, and each is held to the run's alpha:

- "This task changed" (the labels): Holm's step-down over all voting tasks of all adapters, for PASS and FAIL apart.
- "This adapter may go": every claim that takes must hold: the target's gain, each critical general task, the pooled
  drop. So no level is split among them (intersection-union, Berger 1982); Holm over the adapters of the run.
- "This adapter must not go": any critical or supporting general task or the target is labelled FAIL.

Tasks that are only shown are a family of their own: looking at more never changes a verdict.

Holm 1979, Scand. J. Stat. 6:65. Berger 1982, Technometrics 24:295.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tasks.forgetting.outcome import Outcome, Role, TaskVerdict
from tasks.forgetting.pooled import Pool, pool
from tasks.forgetting.reason import p
from tasks.forgetting.verdict import labelled

Cell = tuple[str, int]  # an adapter and the place of one of its tasks


class AdapterVerdict(BaseModel):
    """One adapter of a fleet: may it be released?"""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: Outcome
    reasons: list[str] = Field(description="what the verdict rests on, in plain sentences")
    warnings: list[str] = Field(description="what a reader should know besides; none of it changed the verdict")
    tasks: list[TaskVerdict] = Field(description="as given, labelled with the whole fleet in view")
    pool: Pool | None = Field(description="the decision over the general tasks together, where there are several")
    p_value: float = Field(
        ge=0, le=1, description="p-value of everything that a PASS claims; 1 if it cannot be claimed"
    )
    p_adjusted: float = Field(ge=0, le=1, description="the same after Holm over the adapters")


def judge_fleet(
    tasks: Mapping[str, Sequence[TaskVerdict]],
    *,
    alpha: float,
    pool_margin: float,
    adjust: Literal["holm", "none"] = "holm",
) -> dict[str, AdapterVerdict]:
    """The verdicts on the adapters of one run, from their tasks.

    `pool_margin` is the average drop allowed over right/wrong general tasks, a share of documents. With `adjust` "none"
    no level is split among the adapters, because the caller has divided alpha already; among the tasks of each it is.
    """
    families = [list(tasks)] if adjust == "holm" else [[name] for name in tasks]
    relabelled = {name: cells for family in families for name, cells in _relabelled(tasks, family, alpha).items()}
    pools = {name: pool(cells, pool_margin, alpha) for name, cells in relabelled.items()}
    claims = {name: _p_of_release(relabelled[name], pools[name]) for name in tasks}
    adjusted = {
        name: value
        for family in families
        for name, value in zip(family, holm([claims[name] for name in family]), strict=True)
    }
    return {
        name: _judged(
            relabelled[name],
            pools[name],
            p_value=claims[name],
            p_adjusted=adjusted[name],
            alpha=alpha,
            adapters=len(tasks) if adjust == "holm" else 1,
        )
        for name in tasks
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p-value adjusted by Holm's step-down: reject where it is at most alpha, and some false rejection among all
    of them has at most probability alpha, however they depend on each other."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def _relabelled(
    tasks: Mapping[str, Sequence[TaskVerdict]], adapters: Sequence[str], alpha: float
) -> dict[str, list[TaskVerdict]]:
    """The adapters' tasks with labels that hold for all of them together."""
    cells = {(name, place): one for name in adapters for place, one in enumerate(tasks[name])}
    for voting in (True, False):
        family = {cell: one for cell, one in cells.items() if one.votes == voting and not one.too_few}
        passing = {cell: one.p_value for cell, one in family.items() if one.vote}
        failing = {cell: one.p_breach for cell, one in family.items()}
        p_pass = dict(zip(passing, holm(list(passing.values())), strict=True))
        p_fail = dict(zip(failing, holm(list(failing.values())), strict=True))
        for cell, one in family.items():
            changed = {"p_value_adjusted": p_pass.get(cell), "p_breach_adjusted": p_fail[cell]}
            cells[cell] = labelled(one.model_copy(update=changed), alpha, (len(passing), len(failing)))
    return {name: [cells[name, place] for place in range(len(tasks[name]))] for name in adapters}


def _needed(tasks: Sequence[TaskVerdict], role: Role) -> list[TaskVerdict]:
    """Tasks that must pass by themselves."""
    return [t for t in tasks if t.votes and t.vote and t.role == role and (role == "target" or t.tier == "critical")]


def _p_of_release(tasks: Sequence[TaskVerdict], pooled: Pool | None) -> float:
    targets, critical = _needed(tasks, "target"), _needed(tasks, "general")
    if not targets or not (critical or pooled) or any(one.too_few for one in targets + critical):
        return 1.0
    return max([one.p_value for one in targets + critical] + ([pooled.p_value] if pooled else []))


def _judged(
    tasks: Sequence[TaskVerdict],
    pooled: Pool | None,
    *,
    p_value: float,
    p_adjusted: float,
    alpha: float,
    adapters: int,
) -> AdapterVerdict:
    targets, critical = _needed(tasks, "target"), _needed(tasks, "general")
    failed = [one for one in tasks if one.votes and one.verdict == "FAIL"]
    unproven = [one for one in targets + critical if one.too_few or one.p_value > alpha]
    reasons = [
        f"{one.verdict} on {one.role} task {one.task}: {one.reason}"
        for one in tasks
        if any(one is other for other in failed + unproven)
    ]
    if pooled and pooled.p_value > alpha:
        reasons.append(pooled.told(alpha))
    if not targets:
        reasons.append("no target task votes, so nothing shows that the adapter learned its task")
    if not (critical or pooled):
        reasons.append("no general task votes, so nothing shows that the adapter kept what the base could do")
    others = f"; {p(p_adjusted)} after Holm over {adapters} adapters" if adapters > 1 else ""
    verdict: Outcome = "INCONCLUSIVE"
    if failed:
        verdict = "FAIL"
    elif p_adjusted <= alpha:
        verdict = "PASS"
        shown = "; ".join(_shown(targets, critical, pooled, alpha))
        reasons = [f"{shown}; each shown on its own (largest {p(p_value)}{others})"]
    elif not reasons:
        reasons = [f"every claim holds by itself, but not among those of the whole run (largest {p(p_value)}{others})"]
    return AdapterVerdict(
        verdict=verdict,
        reasons=reasons,
        warnings=_warnings(tasks),
        tasks=list(tasks),
        pool=pooled,
        p_value=p_value,
        p_adjusted=p_adjusted,
    )


def _shown(
    targets: Sequence[TaskVerdict], critical: Sequence[TaskVerdict], pooled: Pool | None, alpha: float
) -> list[str]:
    """What a PASS has shown."""
    shown = [f"gained on {', '.join(one.task for one in targets)}"]
    if critical:
        shown.append(f"dropped on none of {', '.join(one.task for one in critical)} beyond the margins")
    return [*shown, pooled.told(alpha)] if pooled else shown


def _warnings(tasks: Sequence[TaskVerdict]) -> list[str]:
    """What did not move the verdict but should be known."""
    general = [one for one in tasks if one.role == "general"]
    return [
        *(f"general task {one.task}: {one.note}" for one in general if one.note and one.votes),
        *(
            f"supporting task {one.task}: {one.too_few}"
            for one in general
            if one.too_few and one.votes and one.tier == "supporting"
        ),
        *(
            f"advisory task {one.task} failed: {one.reason}"
            for one in general
            if not one.votes and one.verdict == "FAIL"
        ),
    ]
