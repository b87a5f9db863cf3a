"""Was training worth it over prompting? Every trained adapter against every prompt that was asked the same.

The same means the same rows and the same target settings. The two answers to a document are paired on the split that
decides, and tested for any difference (margin 0) by the gate's own test. "no" means that training made it worse;
what the data leave open, equal scores among it, is "cannot tell". It is information: no gate looks at it. Where the two
were answered in different precisions, part of the difference may be that; both are named.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tasks.artifacts import AdapterOutcome, StageResult
from tasks.evaluation.scoring import target_name
from tasks.forgetting.verdict import Outcome, compare

ANSWERS: dict[Outcome, str] = {"PASS": "yes", "FAIL": "no", "INCONCLUSIVE": "cannot tell"}


def over_prompting(
    fleet: Sequence[AdapterOutcome],
    data: Mapping[str, StageResult],
    scores_of: Callable[[str, str], Mapping[str, float]],
    *,
    alpha: float,
) -> list[dict[str, Any]]:
    """The comparisons of summary.json; `scores_of(name, task)` are the scores by document of one of the fleet."""
    judged = [one for one in fleet if one.verdict is not None and not one.error]
    prompts = [one for one in judged if one.method == "prompt"]
    comparisons = []
    for one in judged:
        for prompt in prompts:
            if one.method == "prompt" or _asked(one, data) != _asked(prompt, data):
                continue
            task = target_name(one.name, one.adapter.target.decides)
            (known,) = (known for known in one.verdict["tasks"] if known["task"] == task)  # type: ignore[index]
            found = compare(
                task=task,
                role="target",
                metric=known["metric"],
                base=scores_of(prompt.name, target_name(prompt.name, prompt.adapter.target.decides)),
                adapter=scores_of(one.name, task),
                margin=0.0,
                alpha=alpha,
                higher_is_better=known["metric"] != "nll_per_token",
            )
            comparisons.append(
                {"adapter": one.name, "over": prompt.name, "adapter_score": found.adapter, "over_score": found.base}
                | found.model_dump(include={"task", "metric", "n", "delta", "ci_low", "ci_high", "p_value", "flips"})
                | {
                    "answer": ANSWERS[found.verdict],
                    "quantization": {"adapter": one.quantization, "over": prompt.quantization},
                }
            )
    return comparisons


def _asked(one: AdapterOutcome, data: Mapping[str, StageResult]) -> tuple[str, dict[str, Any]]:
    """The rows and how they are asked; the wanted gain is the gate's business."""
    return data[one.name].ref.digest, one.adapter.target.model_dump(
        include={"decides", "limit", "max_new_tokens", "metric"}
    )
