"""What a run answers: summary.json, the contract that other tools read. docs/DESIGN.md lists its keys."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.artifacts import AdapterOutcome, StageResult
from tasks.recipe.schema import Recipe


def summarise(
    *,
    run_id: str,
    recipe: Recipe,
    store: str,
    base: StageResult,
    fleet: Sequence[AdapterOutcome],
    made: Sequence[StageResult],
    probes: Sequence[dict[str, Any]],
    comparisons: Sequence[dict[str, Any]],
    searches: Mapping[str, list[dict[str, Any]]],
    self_tests: Sequence[dict[str, Any]],
    timings: Mapping[str, float],
) -> dict[str, Any]:
    """The summary of a finished run; `made` are all results whose cache hits are counted, by kind."""
    precisions = sorted({one.quantization for one in fleet})
    counts: dict[str, Counter[str]] = {}
    for result in made:
        counts.setdefault(result.ref.kind, Counter())["hits" if result.cached else "misses"] += 1
    return {
        "run_id": run_id,
        "recipe": recipe.model_dump(mode="json"),
        "store": store,
        "base": {
            "model": base.facts["model"],
            "revision": base.facts["revision"],
            "digest": base.ref.digest,
            "quantization": "+".join(precisions),
        },
        "adapters": [_adapter(one) for one in fleet],
        "comparisons": list(comparisons),
        "searches": dict(searches),
        "self_tests": list(self_tests),
        "probes": list(probes),
        "timings": {stage: round(seconds, 2) for stage, seconds in timings.items()},
        "cache": {kind: {"hits": count["hits"], "misses": count["misses"]} for kind, count in counts.items()},
    }


def _adapter(one: AdapterOutcome) -> dict[str, Any]:
    facts = one.trained.facts if one.trained else {}
    verdict = one.verdict or {}
    return {
        "name": one.name,
        "status": one.status,
        "method": one.method,
        "num_fewshot": one.adapter.num_fewshot if one.method == "prompt" else None,
        "digest": one.trained.ref.digest if one.trained else None,
        "adapter_uri": one.trained.ref.uri if one.trained else None,
        "merged_uri": one.merged.ref.uri if one.merged else None,
        "gguf_uri": one.gguf.ref.uri if one.gguf else None,
        "release": one.release,
        "trainable_params": facts.get("trainable_params"),
        "total_params": facts.get("total_params"),
        "train": {key: facts.get(key) for key in ("steps", "seconds", "tokens", "loss", "validation_loss")},
        "tasks": verdict.get("tasks", []),
        "verdict": verdict.get("verdict"),
        "reasons": verdict.get("reasons", []),
        "warnings": verdict.get("warnings", []),
        **{key: verdict.get(key) for key in ("pool", "p_value", "p_adjusted", "rule")},
        "verdict_uri": one.judged.ref.uri if one.judged else None,
        "cure": one.cure,
        "win_rate": one.win_rate,
        "published": one.published,
        "error": one.error,
        "refs": _refs(one),
    }


def _refs(one: AdapterOutcome) -> dict[str, Any] | None:
    """What a release of it would be made from; None for what was not judged, and for prompts."""
    parts = {"adapter": one.trained, "base": one.base, "data": one.data, "verdict": one.judged}
    if one.method == "prompt" or not all(parts.values()):
        return None
    return {role: result.ref.model_dump() for role, result in parts.items() if result}


def exit_code(summary: Mapping[str, Any]) -> int:
    """0 all gates passed; 3 some adapter failed its gate or was inconclusive; 1 some adapter could not be finished.

    A prompt has no gate: "compared" changes nothing.
    """
    states = {adapter["status"] for adapter in summary["adapters"]}
    if "error" in states:
        return 1
    return 3 if states & {"failed", "inconclusive"} else 0
