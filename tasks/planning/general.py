"""What can be known of the general tasks before any of them is loaded: how many documents, and what kind of answer.

The tasks that ship are counted by the functions that make their documents. Of others only the YAML is read: it says
how a task asks, not how many documents its data set has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from infra.errors import Fault, RequestError
from tasks.evaluation.catalogue import SUITES, task_faults, task_manager
from tasks.evaluation.metrics import LOSS, PERPLEXITY
from tasks.evaluation.suites import capitals, minimal_pairs, pydoc_text
from tasks.recipe.schema import Evaluation, GeneralTask

DOCUMENTS = {  # of the tasks that ship
    "capitals_choice": capitals.choice_documents,
    "capitals_open": capitals.open_documents,
    "minimal_pairs": minimal_pairs.documents,
    "pydoc_perplexity": pydoc_text.documents,
}
RIGHT_WRONG = frozenset(
    {"acc", "acc_norm", "acc_bytes", "exact_match", "contains", "prompt_level_strict_acc", "prompt_level_loose_acc"}
)
OPEN = "generate_until"  # lm-eval's word for a task whose answer is written, not chosen
READ, ANSWERED = "loglikelihood_rolling", "loglikelihood"  # of a text as a whole, of the one answer to a prompt


@dataclass(frozen=True)
class Known:
    """Of one task or group; None is what is not known."""

    documents: int | None
    at_most: bool  # `documents` is the recipe's limit, and the task may have fewer
    asks: frozenset[str] | None  # lm-eval's output types
    right_wrong: bool | None  # whether a document's score is 0 or 1
    loss: bool  # whether it is a loss per token: the margin is then a share of perplexity


def look_at_general(evaluation: Evaluation) -> dict[str, Known]:
    """{task: what is known}; RequestError with the preflight's faults of names, metrics and permissions."""
    general, folder = evaluation.general, evaluation.include_path
    if folder or any(one.metric or one.task not in DOCUMENTS for one in general):  # else no need to wait for lm-eval
        asked = [one.model_dump(include={"task", "metric"}) for one in general]
        if faults := task_faults(asked, folder, permitted=evaluation.confirm_run_unsafe_code):
            raise RequestError(faults)
    return {one.task: _known(one, folder) for one in general}


def few_documents(general: Sequence[GeneralTask], looks: int, include_path: str | None) -> list[Fault]:
    """A fault for each task with fewer documents than looks, as far as it is known: a look would have none of them."""
    faults = []
    for one in general:
        shipped = len(DOCUMENTS[one.task]()) if _is_ours(one.task, include_path) else None
        if (there := min(filter(None, (shipped, one.limit)), default=looks)) < looks:
            more = "raise its limit, or " if one.limit and (shipped is None or shipped > one.limit) else ""
            said = f"got {looks}, and general task {one.task!r} has {there} documents, at least one for each look; "
            faults.append(Fault(f"{said}{more}set looks to {there} or less", "gate.looks"))
    return faults


def collapse_unnoticed(known: Mapping[str, Known]) -> bool:
    """Whether no task asks for an answer in the model's own words, as far as all of them are known."""
    kinds = [one.asks for one in known.values()]
    return bool(kinds) and not any(asks is None or OPEN in asks for asks in kinds)


def _known(asked: GeneralTask, include_path: str | None) -> Known:
    parts = _parts(asked.task, include_path)
    asks = None if parts is None else frozenset(str(part.get("output_type", OPEN)) for part in parts)
    right_wrong = None if parts is None else all(_right_wrong(part, asked.metric) for part in parts)
    loss = bool(parts) and all(_is_loss(part, asked.metric) for part in parts or ())
    documents, at_most = None, False
    if _is_ours(asked.task, include_path):
        documents = len(DOCUMENTS[asked.task]())
        documents = min(documents, asked.limit or documents)
    elif asked.limit and parts:  # lm-eval takes the limit for each task of a group
        documents, at_most = asked.limit * len(parts), True
    return Known(documents, at_most, asks, right_wrong, loss)


def _is_ours(name: str, include_path: str | None) -> bool:
    """Whether the name is that of a task that ships; a user's folder may define it anew."""
    if name not in DOCUMENTS or include_path is None:
        return name in DOCUMENTS
    return bool(task_manager(name, include_path).task_index[name].yaml_path.parent == SUITES)


def _right_wrong(config: Mapping[str, Any], metric: str | None) -> bool:
    return config.get("output_type") != READ and _metric(config, metric) in RIGHT_WRONG


def _is_loss(config: Mapping[str, Any], metric: str | None) -> bool:
    """As tasks/evaluation/metrics.py takes it."""
    kind = config.get("output_type")
    return kind == READ or (kind == ANSWERED and _metric(config, metric) in (LOSS, PERPLEXITY))


def _metric(config: Mapping[str, Any], metric: str | None) -> str:
    listed = config.get("metric_list") or [{"metric": "acc"}]
    return (metric or str(listed[0]["metric"])).partition(",")[0]  # "metric,filter"


def _parts(name: str, include_path: str | None) -> list[dict[str, Any]] | None:
    """The YAML of a task, or of every task of a group; None if some of it is code."""
    if _is_ours(name, include_path):
        return [yaml.load((SUITES / f"{name}.yaml").read_text(), Loader=_WithoutFunctions)]
    return _entries(name, task_manager(name, include_path).task_index)


def _entries(name: str, index: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    entry = index.get(name)
    if entry is None or (entry.cfg is None and not entry.tags) or "class" in (entry.cfg or {}):
        return None
    config = entry.cfg
    if config is not None and "group" not in config:
        return [config]
    children = sorted(entry.tags) if config is None else config["task"]
    found: list[dict[str, Any]] = []
    for child in [children] if isinstance(children, str) else children:
        inner = child if isinstance(child, str) else child.get("task", child.get("group"))
        parts = _entries(inner, index) if isinstance(inner, str) else None
        if parts is None:
            return None
        found += parts if isinstance(child, str) else [{**part, **child} for part in parts]
    return found


class _WithoutFunctions(yaml.SafeLoader):
    """Leaves `!function module.name` the string that it is: nothing of a task is run to plan it."""


_WithoutFunctions.add_constructor("!function", lambda _, node: node.value)
