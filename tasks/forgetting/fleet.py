"""From trained adapters to verdicts: evaluate, compare, judge, look again where the answer is still open.

    members -> evaluate beside the base, one process for each precision   (the first of `gate.looks` parts, or all)
            -> compare each with the base, document by document
            -> judge all together
            -> those still INCONCLUSIVE: the next part of the general documents, and judge again

With one look, Holm's correction stands between the adapters of a run. With several, each look has its own level, which
spends alpha divided by the number of adapters (see docs/STATISTICS.md).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from infra.errors import TunefleetError
from tasks.artifacts import StageResult, quantization_of
from tasks.evaluation.scoring import Scores, SelfTest
from tasks.forgetting.looks import levels
from tasks.forgetting.task import compare_adapter, judge_adapters
from tasks.packs.evaluating import evaluate_all
from tasks.recipe.schema import Adapter, Recipe
from tasks.runs import Run

POOL_SHARE = 0.4  # of the gate's margin: what the general tasks may drop on average, if the recipe does not say


@dataclass
class Judged:
    """What came of judging: by precision and side the scores; by side the verdict with its content, or a failure."""

    scores: dict[str, Scores] = field(default_factory=dict)
    verdicts: dict[str, tuple[StageResult, dict[str, Any]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    made: list[StageResult] = field(default_factory=list)  # comparisons, for the count of cache hits


def judge_members(
    run: Run,
    recipe: Recipe,
    members: Mapping[str, Adapter],
    *,
    base: StageResult,
    data: Mapping[str, StageResult],
    trained: Mapping[str, StageResult],
    self_tests: Mapping[str, Sequence[SelfTest]] | None = None,
    share_of_alpha: float | None = None,
    prompted: Scores | None = None,
) -> Judged:
    """Judge `members` (side -> adapter); `data` is by the adapter's name, `trained` by side.

    `self_tests` (by precision) are scored beside them. `share_of_alpha` is the level of each member, if the caller
    has divided alpha already. `prompted` are scores of prompts that are no members, but may have to be surpassed.
    """
    done, looks = Judged(), recipe.gate.looks
    family = [side for side, one in members.items() if one.method != "prompt"]
    adjust: Literal["holm", "none"] = "holm" if share_of_alpha is None and looks == 1 else "none"
    alpha = share_of_alpha or recipe.gate.alpha / (max(1, len(family)) if looks > 1 else 1)
    level = levels(alpha, looks)
    precision = {side: quantization_of(recipe, one) for side, one in members.items()}
    undecided = dict(members)
    for look in range(1, looks + 1):
        for one in sorted({precision[side] for side in undecided}):
            scores, unscored = evaluate_all(
                *(run, recipe, one),
                members={side: adapter for side, adapter in undecided.items() if precision[side] == one},
                base=base,
                data=data,
                trained=trained,
                look=look,
                self_tests=(self_tests or {}).get(one, ()) if look == 1 else (),
            )
            _add(done.scores.setdefault(one, {}), scores)
            done.failed |= unscored
        undecided = {side: adapter for side, adapter in undecided.items() if side not in done.failed}
        prompts = prompted or prompts_among(members, done)
        compared: dict[str, StageResult] = {}
        for side, adapter in undecided.items():
            scores = done.scores[precision[side]]
            try:
                compared[side] = compare_adapter(run, recipe, side, adapter, scores, prompts, alpha=level[look - 1])
            except TunefleetError as error:
                done.failed[side] = str(error)
        undecided = {side: adapter for side, adapter in undecided.items() if side in compared}
        done.made += compared.values()
        done.verdicts |= judge_adapters(
            *(run, undecided, trained, compared),
            alpha=level[look - 1],
            pool_margin=recipe.gate.pool_margin or POOL_SHARE * recipe.gate.margin,
            adjust=adjust,
        )
        undecided = {side: one for side, one in undecided.items() if _is_open(done.verdicts[side][1], look == looks)}
        if not undecided:
            break
    return done


def prompts_among(members: Mapping[str, Adapter], judged: Judged) -> Scores:
    """The scores of those members that are prompts."""
    return {
        side: cells
        for scores in judged.scores.values()
        for side, cells in scores.items()
        if side in members and members[side].method == "prompt"
    }


def _is_open(verdict: Mapping[str, Any], last: bool) -> bool:
    """Whether further documents could tell more: also of a task that has too few yet to be a witness at all."""
    silent = any(one["role"] == "general" and one["tier"] == "critical" and not one["vote"] for one in verdict["tasks"])
    return verdict["verdict"] == "INCONCLUSIVE" or (verdict["verdict"] == "PASS" and silent and not last)


def _add(scores: Scores, more: Scores) -> None:
    """Put the results of a further look behind those that were there."""
    for side, cells in more.items():
        for name, parts in cells.items():
            scores.setdefault(side, {}).setdefault(name, []).extend(parts)
