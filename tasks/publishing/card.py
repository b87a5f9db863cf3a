"""The model card: what was trained on what, what it learned, what it kept, what was not tested, and how to load it.

The front matter is what the Hub indexes (base model, licence, results as model-index); the text below is for people.
Names and reasons come from recipes and data: they are written as text and never as markup (markdown.py).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from huggingface_hub import EvalResult, ModelCardData

from tasks.publishing.eval_results import was_scored
from tasks.publishing.how_to_load import how_to_load, is_hub_id
from tasks.publishing.markdown import bullets, table, text
from tasks.recipe.schema import Artifact

_TASK_COLUMNS = (
    *("task", "role", "metric", "n", "base", "adapter", "delta", "interval", "margin", "lost / gained", "verdict"),
)
_LIBRARY = {"adapter": "peft", "merged": "transformers"}
_RELATION = {"adapter": "adapter", "merged": "finetune", "gguf": "finetune"}
_PRECISION = {"none": "16 bits", "nf4": "4 bits (NF4)"}


def render_card(
    *,
    name: str,
    number: int,
    what: Artifact,
    base_model: str,
    base_revision: str | None,
    base_digest: str | None,
    base_license: str | None,
    method: str,
    quantization: Literal["none", "nf4"],
    data_digest: str,
    recipe: str,
    training: Mapping[str, Any],
    tasks: Sequence[Mapping[str, Any]],
    verdict: str,
    reasons: Sequence[str],
    rule: Mapping[str, Any] | None = None,
    override: Mapping[str, str] | None = None,
    merge: Mapping[str, Any] | None = None,
    load_from: str | None = None,
    files: Sequence[str] = (),
) -> str:
    """The README.md of one release.

    `number` is the release's among those of its name. `base_model` is a Hub id, or a path or uri, which the Hub's
    index does not take: that one stands in the text only. `base_license` is a licence id of the Hub, None where
    unknown. `method` is lora, qlora or full; `quantization` the precision of the base that was judged. `training` holds
    figures by name, `merge` those of the merge, also nested. `tasks`, `verdict`, `reasons` and `rule` (alpha, adjust)
    are those of verdict.json; a figure that is None was not measured. `override` has the reason, by and at of a
    release without a PASS. `load_from`, a repository id or a folder, is where the snippets load from; `files` are
    the names of the release's files.
    """
    results = [_result(task, rule, quantization) for task in tasks if _is_number(task.get("adapter"))]
    relation = _RELATION.get(what) if is_hub_id(base_model) else None
    data = ModelCardData(
        base_model=base_model if relation else None,  # a report is not made from the base's weights
        base_model_relation=relation,
        library_name=_LIBRARY.get(what),
        license=base_license,
        model_name=name,
        pipeline_tag=None if what == "report" else "text-generation",
        tags=[
            *("tunefleet", *([] if method == "full" else ["lora"]), *([method] if method else [])),
            *([what] if what in ("gguf", "report") else []),
        ],
        eval_results=results or None,
    )
    if not results:
        del data.model_name  # it only names the results
    facts = {
        "version": f"v{number}",
        "base model": base_model,
        "base revision": base_revision,
        "base digest": base_digest,
        "licence of the base": base_license or "not known",
        "method": method,
        "training data (digest)": data_digest,
        "recipe": recipe,
    }
    loading = how_to_load(
        what,
        name=name,
        base_model=base_model,
        base_revision=base_revision,
        quantization=quantization,
        source=load_from or f"path/to/{name}",
        files=files,
    )
    sections = [
        f"---\n{data.to_yaml()}\n---",
        f"# {text(name)} v{number}",
        _warning(override, verdict) if override else "",
        f"{_opening(what, method)} {text(base_model)}, trained and judged by Tunefleet.",
        f"## Verdict: {text(verdict)}",
        bullets(text(reason) for reason in reasons),
        "## Evaluation",
        f"The base model and {_judged(method)} answered the same documents; the interval is that of the difference. "
        "Lost are the documents that only the base got right, gained those that only the other did; "
        "graded scores have neither.",
        table(_TASK_COLUMNS, (_row(task) for task in tasks)) if tasks else "No task was evaluated.",
        "## Limits",
        bullets(_limits(what, method, quantization, tasks, rule)),
        "## How to load it",
        *loading,
        "## Lineage",
        table(("fact", "value"), ((fact, value) for fact, value in facts.items() if value is not None)),
        "Everything that went into it, with digests, is in `tunefleet.json`.",
        "## Training",
        table(("figure", "value"), training.items()) if training else "No figures were recorded.",
        *(["## Merging", table(("figure", "value"), _flat(merge))] if merge else []),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _warning(override: Mapping[str, str], verdict: str) -> str:
    return (
        f"> **Warning: released without a PASS.** The verdict is {text(verdict)}. {text(override['by'])} let it "
        f"through on {text(override['at'])}, for this reason: {text(override['reason'])}"
    )


def _opening(what: Artifact, method: str) -> str:
    made = "fully fine-tuned model (all weights trained)" if method == "full" else "LoRA adapter"
    if what == "report":
        return f"How a {made} was judged that was made from"
    if method == "full":
        return f"A {made}{', as GGUF,' if what == 'gguf' else ''} made from"
    return {
        "adapter": "A LoRA adapter for",
        "merged": "A LoRA adapter merged into",
        "gguf": "As GGUF, for llama.cpp: a LoRA adapter merged into",
    }[what]


def _judged(method: str) -> str:
    return "the fine-tuned model (column adapter)" if method == "full" else "the adapter"


def _limits(
    what: Artifact,
    method: str,
    quantization: str,
    tasks: Sequence[Mapping[str, Any]],
    rule: Mapping[str, Any] | None,
) -> Iterator[str]:
    """What the evaluation does not say, as markdown; only what is known of any release, and no guesses."""
    yield "Only the tasks in the table were scored. What they do not ask was not tested: it may be worse than before."
    yield "A PASS does not say that nothing was lost: a drop below the margin is allowed."
    if rule:
        held = {
            "holm": "after Holm's correction for the adapters that were judged together; the verdict of a single task "
            "is corrected for all tasks of all those adapters",
            "none": "without a correction for the number of adapters that were judged together",
        }
        yield (
            f"What a PASS claims was tested at an error rate of {text(str(rule['alpha']))}, "
            f"{held[rule.get('adjust', 'holm')]}. It holds for documents drawn like these."
        )
    scored = "the model" if method == "full" else f"the adapter on the base in {_PRECISION[quantization]}"
    if what == "report" or was_scored(what, method):
        yield f"Scored was {scored}; in another precision the answers may differ."
    else:
        yield f"Scored was {scored}, not these files; their answers may differ."
    for task in tasks:
        if task.get("note"):
            yield f"On {text(str(task['task']))} a PASS is no evidence: {text(task['note'])}"
    yield "Which languages and domains the training data cover, and under which licence, is not known to Tunefleet."


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _result(task: Mapping[str, Any], rule: Mapping[str, Any] | None, quantization: str) -> EvalResult:
    """Of the model-index. None is `verified`: that word is kept for what the Hub itself has computed."""
    figures = {key: task.get(key) for key in ("n", "base", "delta", "ci_low", "ci_high", "verdict")}
    if rule:
        figures["confidence"] = round(1 - 2 * rule["alpha"], 6)
    args = {key: value for key, value in figures.items() if not isinstance(value, float) or math.isfinite(value)}
    return EvalResult(
        task_type="text-generation",
        dataset_type=str(task["task"]),
        dataset_name=str(task["task"]),
        metric_type=str(task["metric"]),
        metric_name=str(task["metric"]),
        metric_value=float(task["adapter"]),
        metric_args={key: value for key, value in args.items() if value is not None} | {"precision": quantization},
    )


def _row(task: Mapping[str, Any]) -> list[Any]:
    low, high, flips = task.get("ci_low"), task.get("ci_high"), task.get("flips")
    role, tier, over = task.get("role"), task.get("tier"), task.get("over")
    if role == "general" and tier and tier != "critical":
        role = f"{role}, {tier}"
    if over and over != "the base":
        role = f"{role}; base is {over}"
    counted = f"{flips['lost']} / {flips['gained']}" if flips else None
    shown = {
        **task,
        "role": role,
        "interval": None if low is None and high is None else f"{_figure(low)} to {_figure(high)}",
        "lost / gained": "graded" if task.get("kind") == "graded" else counted,
    }
    return [shown.get(column) for column in _TASK_COLUMNS]


def _figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"


def _flat(figures: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in figures.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}: ")
        else:
            yield f"{above}{key}", value
