"""What the gate of a recipe will be able to see, task by task: the power section of a plan.

Disagreement rates are what earlier runs on the same base measured, else an assumption that is named as one. What is
not known stays None: the documents of a task on the Hub, the spread of graded scores that no run has measured.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.evaluation.scoring import target_name
from tasks.forgetting.fleet import POOL_SHARE
from tasks.forgetting.looks import levels
from tasks.forgetting.sample_size import POWER
from tasks.planning import power
from tasks.planning.general import Known, collapse_unnoticed
from tasks.planning.measured import Measured
from tasks.recipe.schema import Adapter, GeneralTask, Recipe

Facts = dict[str, Any]
POOL = "all of them, on average"


def power_of(
    recipe: Recipe, adapters: Sequence[Facts], known: Mapping[str, Known], measured: Mapping[str, Measured]
) -> Facts:
    """{"alpha", "power", "looks", "judged", "tasks", "warnings"}; `adapters` are the plan's, for their rows.

    All adapters of the recipe are judged together and share alpha, also where only some of them are planned.
    """
    gate, judged = recipe.gate, [one for one in recipe.adapters if one.method != "prompt"]
    share = gate.alpha / max(1, len(judged)) if gate.looks > 1 else gate.alpha
    alpha = levels(share, gate.looks)[-1]  # what is left for the look that has all documents
    rows = {one["name"]: one for one in adapters}
    general = [
        _general(one, recipe, known[one.task], measured.get(one.task), alpha) for one in recipe.evaluation.general
    ]
    targets = [_target(one, rows[one.name], measured, alpha) for one in judged if one.name in rows]
    pool = _pool(general, gate.pool_margin or POOL_SHARE * gate.margin, alpha)
    warnings = []
    if judged and collapse_unnoticed(known):
        warnings.append(
            "no general task asks for an open answer (generate_until), so a collapse onto one answer may go unnoticed; "
            "add one such as capitals_open"
        )
    if gate.looks > 1:
        warnings.append(
            f"{gate.looks} looks: alpha {gate.alpha:g} is divided among {len(judged)} adapter(s), {share:.3g} each, of "
            f"which the last look, the one with all documents, has {alpha:.3g}"
        )
    return {
        **{"alpha": alpha, "power": POWER, "looks": gate.looks, "judged": len(judged)},
        **{"tasks": (general + pool if targets else []) + targets, "warnings": warnings},
    }


def _facts(task: str, role: str, margin: float, **more: Any) -> Facts:
    """One line of the table; None where a figure is not known. `change` is what `margin` and `detectable` measure."""
    empty = dict.fromkeys(("tier", "documents", "disagreement", "sd", "detectable", "needed", "enough", "note"))
    rest = {"change": "gain" if role == "target" else "drop", "at_most": False, "measured_on": 0}
    return {"task": task, "role": role, "margin": margin, **empty, **rest, **more}


def _general(asked: GeneralTask, recipe: Recipe, known: Known, seen: Measured | None, alpha: float) -> Facts:
    facts = _facts(asked.task, "general", asked.margin or recipe.gate.margin, tier=asked.tier)
    facts |= {"documents": known.documents, "at_most": known.at_most, "measured_on": seen.adapters if seen else 0}
    facts["change"] = "rise" if known.loss else "drop"  # of perplexity, while the scores are nats
    n, margin = known.documents, facts["margin"]
    if known.right_wrong:
        facts["disagreement"] = rate = seen.disagreement if seen else power.ASSUMED
        facts["needed"] = power.needed_right_wrong(margin, rate, alpha)
        facts["detectable"] = power.smallest_drop(n, rate, alpha) if n else None
    elif known.right_wrong is None:
        facts["note"] = "the task is code, so the kind of its scores is not known before it runs"
    elif seen and seen.sd is not None:
        facts["sd"] = seen.sd
        facts["needed"] = power.needed_graded(math.log1p(margin) if known.loss else margin, seen.sd, alpha)
        smallest = power.smallest_drop_graded(n, seen.sd, alpha) if n else None
        facts["detectable"] = math.expm1(smallest) if smallest is not None and known.loss else smallest
    else:
        facts["note"] = "graded scores: it depends on their spread, which no verdict in the store states"
    if facts["needed"] and n:
        facts["enough"] = n >= facts["needed"]
    if asked.clusters:
        facts["note"] = f"documents of one {asked.clusters} count for less than single ones: plan for more"
    return facts


def _pool(general: Sequence[Facts], margin: float, alpha: float) -> list[Facts]:
    """The average over the right/wrong tasks that vote; nothing where the gate has none or a size is unknown."""
    voting = [one for one in general if one["disagreement"] is not None and one["tier"] != "advisory"]
    if not voting or (len(voting) == 1 and voting[0]["tier"] == "critical"):
        return []
    if any(one["documents"] is None for one in voting):
        return []
    tasks = [(one["documents"], one["disagreement"]) for one in voting]
    total, needed = sum(n for n, _ in tasks), power.needed_pooled(margin, tasks, alpha)
    return [
        _facts(
            *(POOL, "pool", margin),
            documents=total,
            at_most=any(one["at_most"] for one in voting),
            detectable=power.smallest_pooled_drop(tasks, alpha),
            needed=needed,
            enough=total >= needed,
        )
    ]


def _target(adapter: Adapter, rows: Facts, measured: Mapping[str, Measured], alpha: float) -> Facts:
    """A target's margin is the gain that is wanted; `detectable` is the smallest true gain that would show it."""
    target = adapter.target
    name = target_name(adapter.name, target.decides)
    count = rows["rows"][target.decides]
    seen = measured.get(name)
    facts = _facts(name, "target", target.gain, documents=min(count, target.limit or count))
    facts["measured_on"] = seen.adapters if seen else 0
    written = rows["kind"] in ("chat", "plain")
    facts["change"] = "fall" if rows["kind"] == "text" else "gain"
    if rows["kind"] == "text" or (written and target.metric != "exact_match"):
        facts["note"] = "graded scores: it depends on their spread and on what is learned"
        return facts
    facts["disagreement"] = rate = seen.disagreement if seen else power.ASSUMED
    facts["detectable"] = power.smallest_gain(facts["documents"], target.gain, rate, alpha)
    if facts["detectable"] is None:
        facts["enough"] = False
        facts["note"] = f"not even a gain on all {facts['documents']} documents would show that it learned"
    return facts
