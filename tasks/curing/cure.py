"""Curing an adapter that learned its target and fails on general tasks only, cheapest first.

    FAIL on general tasks, PASS on the target
      -> scales: the same adapter with lora_alpha times 0.75, 0.5, 0.25, all scored in one process; then bisection
         between the largest that passes and the next larger one
      -> if none passes and the recipe asks for it, replay: trained once more, among rows that the base itself answered
      -> the candidate that passed takes the adapter's place, or nothing does; the curve says what was seen either way

Every candidate is one more chance to pass by luck. How many there could be is known before the first is looked at, so
each is judged at alpha / (adapters of the fleet * candidates of one cure). All cures of a run together spend one more
alpha beside that of the fleet itself (docs/STATISTICS.md).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prefect import get_run_logger

from infra.errors import TunefleetError
from tasks.artifacts import AdapterOutcome, StageResult, quantization_of
from tasks.curing.search import cure_scales, planned
from tasks.curing.task import answer_general_prompts, mix_replay, scale_adapter
from tasks.evaluation.scoring import BASE, Scores
from tasks.forgetting.fleet import Judged, judge_members, prompts_among
from tasks.packs.training import train_one
from tasks.recipe.schema import Adapter, Cure, Recipe
from tasks.runs import Run

Candidates = Mapping[str, tuple[Adapter, StageResult]]
Verdict = tuple[StageResult, dict[str, Any]]


def why_not(one: AdapterOutcome, alpha: float) -> str | None:
    """Why a cure makes no sense; None if it failed on general tasks only, and its gain holds by itself at `alpha`."""
    if one.error or one.verdict is None or one.verdict["verdict"] != "FAIL":
        return "it did not fail its gate"
    if one.method not in ("lora", "qlora"):
        return f"method {one.method} has no adapter to scale"
    targets = [task for task in one.verdict["tasks"] if task["decides"] and task["role"] == "target"]
    unlearned = [task["task"] for task in targets if task["too_few"] or task["p_value"] > alpha]
    return f"it is not shown to have learned {', '.join(unlearned)}" if unlearned else None


def cure_fleet(
    run: Run,
    recipe: Recipe,
    fleet: Sequence[AdapterOutcome],
    members: Mapping[str, Adapter],
    judged: Judged,
    *,
    base: StageResult,
) -> list[StageResult]:
    """Cure those that a cure makes sense for; the others that failed are told why not. Returns what was made."""
    made, prompted = [], prompts_among(members, judged)
    for one in fleet:
        why = why_not(one, recipe.gate.alpha)
        if why is None and one.data:
            known = judged.scores[one.quantization]
            made += cure(run, recipe, one, base=base, data=one.data, known=known, prompted=prompted)
        elif one.verdict and one.verdict["verdict"] == "FAIL":
            one.cure = {"kept": None, "curve": [], "said": f"No cure was tried: {why}."}
    return made


def cure(
    run: Run,
    recipe: Recipe,
    one: AdapterOutcome,
    *,
    base: StageResult,
    data: StageResult,
    known: Scores,
    prompted: Scores,
) -> list[StageResult]:
    """Try what `recipe.cure` says; `one` gets the candidate that passed, and the curve. Returns what was made.

    `known` are the fleet's scores in the adapter's precision, `prompted` those of its prompts.
    """
    asked, trained, judged_before = recipe.cure, one.trained, one.judged
    assert asked and trained and one.verdict, "nothing to cure"
    logger = get_run_logger()
    members = sum(adapter.method != "prompt" for adapter in recipe.adapters)
    count = planned(asked.scales, asked.refine, bool(asked.replay))
    share = recipe.gate.alpha / (members * count)
    tried: dict[str, Verdict] = {}
    candidates: dict[str, dict[str, Any]] = {}  # what each one is: kind, scale, share, artifact
    cells: Scores = {}
    made: list[StageResult] = []

    def judge(some: Candidates) -> None:
        judged = judge_members(
            *(run, recipe, {side: adapter for side, (adapter, _) in some.items()}),
            base=base,
            data={one.name: data},
            trained={side: artifact for side, (_, artifact) in some.items()},
            share_of_alpha=share,
            prompted=prompted,
        )
        for side, why in judged.failed.items():
            logger.warning("%s: %s", side, why)
        tried.update(judged.verdicts)
        for scores in judged.scores.values():
            cells.update(scores)
        made.extend(_results(judged))

    def passes(side: str) -> bool:
        return side in tried and tried[side][1]["verdict"] == "PASS"

    said = ""
    try:
        _try_scales(run, one.adapter, trained, asked, judge, passes, candidates)
    except TunefleetError as error:
        said = f"Not every scale could be tried: {error} "
    scales = [side for side, what in candidates.items() if what["kind"] == "scale" and passes(side)]
    kept = max(scales, key=lambda side: candidates[side]["scale"], default=None)
    if kept is None and asked.replay:
        general = [part for task in recipe.evaluation.general for part in known[BASE][task.task]]
        try:
            kept = _by_replay(run, recipe, one, base, data, general, judge, passes, candidates)
        except TunefleetError as error:
            said += f"Replay could not be tried: {error} "
    curve = [_point("as trained", {"kind": "scale", "scale": 1.0, "share": None, "artifact": trained}, one.verdict)]
    curve += [_point(side, what, tried[side][1]) for side, what in candidates.items() if side in tried]
    if kept:
        what = candidates[kept]
        said += f"{_named(what)} passes every gate, each at level {share:.2g}."
        one.trained, one.cells, (one.judged, one.verdict) = what["artifact"], cells[kept], tried[kept]
        one.data = what.get("data", data)
    else:
        said += f"Nothing passes: {len(tried)} candidates were judged, each at level {share:.2g}."
    one.cure = {"kept": _public(candidates[kept]) if kept else None, "curve": curve, "said": said}
    logger.info("%s: %s", one.name, said)
    made += [what["artifact"] for what in candidates.values()]
    if kept and judged_before:  # in the count of what was made, they change places with what is released
        released = [result.ref for result in (one.trained, one.judged) if result]
        made = [result for result in made if result.ref not in released] + [trained, judged_before]
    return made


def _try_scales(
    run: Run,
    adapter: Adapter,
    trained: StageResult,
    asked: Cure,
    judge: Callable[[Candidates], None],
    passes: Callable[[str], bool],
    candidates: dict[str, dict[str, Any]],
) -> None:
    """Judge weaker versions of the adapter; what each is goes into `candidates`."""

    def side_of(scale: float) -> str:
        return f"{adapter.name}.x{scale:g}"

    def try_many(scales: list[float]) -> dict[float, bool]:
        some = {}
        for scale in scales:
            artifact = scale_adapter(run, adapter.name, trained, scale)
            candidates[side_of(scale)] = {"kind": "scale", "scale": scale, "share": None, "artifact": artifact}
            some[side_of(scale)] = adapter, artifact
        judge(some)
        return {scale: passes(side_of(scale)) for scale in scales}

    cure_scales(asked.scales, asked.refine, try_many)


def _by_replay(
    run: Run,
    recipe: Recipe,
    one: AdapterOutcome,
    base: StageResult,
    data: StageResult,
    general: list[StageResult],
    judge: Callable[[Candidates], None],
    passes: Callable[[str], bool],
    candidates: dict[str, dict[str, Any]],
) -> str | None:
    """The side of the adapter that was trained once more, if it passes."""
    adapter = one.adapter
    assert recipe.cure and recipe.cure.replay and adapter.training
    asked = recipe.cure.replay
    answers = answer_general_prompts(
        run, base, quantization_of(recipe, adapter), asked.prompts, max_new_tokens=asked.max_new_tokens
    )
    mixed = mix_replay(run, adapter, data, answers, general, share=asked.share, seed=adapter.training.seed)
    artifact = train_one(run, recipe, adapter, base, mixed).result()
    side = f"{adapter.name}.replay"
    candidates[side] = {"kind": "replay", "scale": 1.0, "share": asked.share, "artifact": artifact, "data": mixed}
    judge({side: (adapter, artifact)})
    return side if passes(side) else None


def _results(judged: Judged) -> list[StageResult]:
    scored = [
        part
        for scores in judged.scores.values()
        for cells in scores.values()
        for parts in cells.values()
        for part in parts
    ]
    return [*scored, *judged.made, *(stored for stored, _ in judged.verdicts.values())]


def _public(what: Mapping[str, Any]) -> dict[str, Any]:
    return {key: what[key] for key in ("kind", "scale", "share")}


def _named(what: Mapping[str, Any]) -> str:
    return f"scale {what['scale']:g}" if what["kind"] == "scale" else f"replay with a share of {what['share']:g}"


def _point(name: str, what: Mapping[str, Any], verdict: Mapping[str, Any]) -> dict[str, Any]:
    """One point of the curve of learning against forgetting."""
    target = next(task for task in verdict["tasks"] if task["role"] == "target" and task["decides"])
    return {
        **_public(what),
        "name": name,
        "digest": what["artifact"].ref.digest,
        "verdict": verdict["verdict"],
        "alpha": verdict["rule"]["alpha"],
        "target": {key: target[key] for key in ("delta", "ci_low", "ci_high")},
        "general": [
            {key: task[key] for key in ("task", "delta", "verdict")}
            for task in verdict["tasks"]
            if task["role"] == "general"
        ],
        "pool": verdict.get("pool"),
    }
