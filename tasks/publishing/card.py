"""The model card: what was trained on what, what it learned, what it kept, and how to load it.

The front matter is what the Hub indexes (base model, licence, results as model-index); the text below is for people.
Names and reasons come from recipes and data: they are written as text and never as markup.
"""

import html
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

_TASK_COLUMNS = ("task", "role", "metric", "n", "base", "adapter", "delta", "interval", "margin", "verdict")
_MARKUP = re.compile(r"^(?:[-+#]|\d+(?=[.)](?:\s|$)))|[\\`*_\[\]|~$]")  # the first kind only where a line starts


def render_card(
    *,
    name: str,
    what: Literal["adapter", "merged"],
    base_model: str,
    base_revision: str | None,
    base_digest: str | None,
    base_license: str | None,
    method: str,
    data_digest: str,
    recipe: str,
    training: Mapping[str, Any],
    tasks: Sequence[Mapping[str, Any]],
    verdict: str,
    reasons: Sequence[str],
    load_from: str | None = None,
) -> str:
    """The README.md of one release.

    `base_model` is a Hub id, or a path or uri, which the Hub's index does not take: that one stands in the text only.
    `base_license` is a licence id of the Hub, None where unknown. `method` is lora, qlora or full. `training`
    holds figures by name. Each of `tasks` has task, role (target or general), metric, n (documents), base and
    adapter (scores), delta, ci_low, ci_high and margin (in the metric's unit) and verdict; None is "not measured".
    `load_from` is where the snippet loads from: a repository id or a folder.
    """
    data = ModelCardData(
        base_model=base_model if _is_hub_id(base_model) else None,
        base_model_relation=("adapter" if what == "adapter" else "finetune") if _is_hub_id(base_model) else None,
        library_name="peft" if what == "adapter" else "transformers",
        license=base_license,
        model_name=name,
        pipeline_tag="text-generation",
        tags=["tunefleet", *([] if method == "full" else ["lora"]), *([method] if method else [])],
        eval_results=[_result(task) for task in tasks if _is_number(task.get("adapter"))] or None,
    )
    if not data.eval_results:
        del data.model_name  # it only names the results
    facts = {
        "base model": base_model,
        "base revision": base_revision,
        "base digest": base_digest,
        "licence of the base": base_license,
        "method": method,
        "training data (digest)": data_digest,
        "recipe": recipe,
    }
    sections = [
        f"---\n{data.to_yaml()}\n---",
        f"# {_text(name)}",
        f"{_opening(what, method)} {_text(base_model)}, trained and judged by Tunefleet.",
        f"## Verdict: {_text(verdict)}",
        "\n".join(f"- {_text(reason)}" for reason in reasons),
        "## Evaluation",
        f"The base model and {_judged(method)} answered the same documents; the interval is that of the difference.",
        _table(_TASK_COLUMNS, (_row(task) for task in tasks)) if tasks else "No task was evaluated.",
        "## How to load it",
        _python(_snippet(what, base_model, base_revision, load_from or f"path/to/{name}")),
        "## Lineage",
        _table(("fact", "value"), ((fact, value) for fact, value in facts.items() if value is not None)),
        "Everything that went into it, with digests, is in `tunefleet.json`.",
        "## Training",
        _table(("figure", "value"), training.items()) if training else "No figures were recorded.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _opening(what: str, method: str) -> str:
    if method == "full":
        return "A fully fine-tuned model (all weights trained) made from"
    return "A LoRA adapter for" if what == "adapter" else "A LoRA adapter merged into"


def _judged(method: str) -> str:
    return "the fine-tuned model (column adapter)" if method == "full" else "the adapter"


def _is_hub_id(model: str) -> bool:
    try:
        validate_repo_id(model)
    except HFValidationError:
        return False
    return True


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _result(task: Mapping[str, Any]) -> EvalResult:
    return EvalResult(
        task_type="text-generation",
        dataset_type=str(task["task"]),
        dataset_name=str(task["task"]),
        metric_type=str(task["metric"]),
        metric_name=str(task["metric"]),
        metric_value=float(task["adapter"]),
    )


def _row(task: Mapping[str, Any]) -> list[Any]:
    low, high = task.get("ci_low"), task.get("ci_high")
    interval = f"{_value(low)} to {_value(high)}" if low is not None or high is not None else None
    return [interval if column == "interval" else task.get(column) for column in _TASK_COLUMNS]


def _table(columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *([_text(_value(cell)) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _value(value: Any) -> str:
    if value is None:
        return "not measured"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _text(value: str) -> str:
    """One line in which nothing is markup, neither markdown nor HTML."""
    line = html.escape(" ".join(str(value).split()), quote=False)
    return _MARKUP.sub(lambda found: _escaped(found.group()), line)


def _escaped(mark: str) -> str:
    return f"{mark}\\" if mark.isdigit() else f"\\{mark}"  # of "1." that starts a list it is the dot


def _snippet(what: str, base_model: str, base_revision: str | None, source: str) -> list[str]:
    if what == "merged":
        return [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f"model = AutoModelForCausalLM.from_pretrained({_quoted(source)})",
            f"tokenizer = AutoTokenizer.from_pretrained({_quoted(source)})",
        ]
    base = [f"base_model = {_quoted(base_model)}"]
    if not _is_hub_id(base_model):  # transformers cannot fetch it by that name
        shown = "".join(mark if mark.isprintable() else " " for mark in base_model)
        base = [f"# the base model is {' '.join(shown.split())}", 'base_model = "path/to/the/base/model"']
    revision = f", revision={_quoted(base_revision)}" if base_revision and _is_hub_id(base_model) else ""
    return [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        *base,
        f"tokenizer = AutoTokenizer.from_pretrained(base_model{revision})",
        f"model = AutoModelForCausalLM.from_pretrained(base_model{revision})",
        f"model = PeftModel.from_pretrained(model, {_quoted(source)})",
    ]


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _python(lines: Sequence[str]) -> str:
    return "\n".join(("```python", *lines, "```"))
