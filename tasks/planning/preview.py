"""Training rows as the model sees them, and figures of their lengths: rendered by the function that training uses."""

import math
import tempfile
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from infra.errors import Fault, RequestError
from tasks.planning.base import look_at
from tasks.planning.rows import DataSet, Row, data_set, sides_of
from tasks.prompting.shots import draw, with_shots
from tasks.recipe.schema import Adapter, Recipe
from tasks.training.rendering import IGNORED, Rendered, render

Facts = dict[str, Any]


def make_preview(recipe: Recipe, count: int) -> Facts:
    """The first `count` rows and the lengths of all, per adapter, as JSON; RequestError with the faults of all."""
    faults: list[Fault] = []
    adapters: list[Facts] = []
    tokenizer = None
    try:
        tokenizer = look_at(recipe.base, None).tokenizer
        if tokenizer is None:
            faults.append(
                Fault(f"base.model {recipe.base.model!r} has no tokenizer, so no row can be shown as tokens.")
            )
    except RequestError as error:
        faults += error.faults
    with tempfile.TemporaryDirectory(prefix="tunefleet-preview-") as scratch:
        for adapter in recipe.adapters:
            try:
                data = data_set(adapter, None, Path(scratch))
                if tokenizer:
                    adapters.append(_preview(adapter, data, tokenizer, count))
            except RequestError as error:
                faults += [Fault(str(fault), f"adapter {adapter.name!r}") for fault in error.faults]
    if faults:
        raise RequestError(list(dict.fromkeys(faults)))
    return {"recipe": recipe.name, "model": recipe.base.model, "adapters": adapters}


def _preview(adapter: Adapter, data: DataSet, tokenizer: Any, count: int) -> Facts:
    assert adapter.training, "the recipe was not resolved"
    rows, limit = data.read("train"), adapter.training.max_length
    rendered = [sides_of(tokenizer, row) for row in rows]
    sides = [side for pair in rendered for side in pair]
    too_long = [pair for pair in rendered if any(len(side.input_ids) > limit for side in pair)]
    trained = sum(label != IGNORED for side in sides for label in side.labels)
    facts = {
        "name": adapter.name,
        "method": adapter.method,
        "kind": data.report["kind"],
        "counts": {side: data.report.get(side, 0) for side in ("train", "validation", "held_out")},
        "lengths": {
            "prompt": spread([len(side.prompt_ids) for side in sides]),
            "answer": spread([len(side.answer_ids) for side in sides]),
            "row": spread([len(side.input_ids) for side in sides]),
        },
        "max_length": limit,
        "longer": len(too_long),
        "answer_lost": sum(any(len(side.prompt_ids) >= limit for side in pair) for pair in too_long),
        "trained_share": trained / sum(len(side.labels) for side in sides),
    }
    if adapter.method == "prompt":
        return {**facts, "trained_share": 0.0, "rows": _prompted(adapter, data, tokenizer, count)}
    shown = zip(rows[:count], rendered, strict=False)
    return {**facts, "rows": [_shown(row, pair, tokenizer) for row, pair in shown]}


def _shown(row: Row, sides: Sequence[Rendered], tokenizer: Any) -> Facts:
    names = ("chosen", "rejected") if len(sides) == 2 else ("row",)
    return {
        "id": row["id"],
        "sides": [
            {"name": name, "parts": parts(side, tokenizer), "tokens": len(side.input_ids),
             "trained_tokens": sum(label != IGNORED for label in side.labels)}
            for name, side in zip(names, sides, strict=True)
        ],
    }  # fmt: skip


def _prompted(adapter: Adapter, data: DataSet, tokenizer: Any, count: int) -> list[Facts]:
    """What method `prompt` asks, with its examples; nothing in it is trained."""
    train, held_out = data.read("train"), data.read("held_out")
    spare = int(adapter.num_fewshot > 0 and "train" in adapter.target.splits)
    shots = draw(train, held_out, adapter.num_fewshot + spare, adapter.data.seed)
    facts = []
    for row in (held_out or train)[:count]:
        asked = {**row, "prompt": with_shots(row["prompt"], shots, adapter.num_fewshot)} if "prompt" in row else row
        answered = {**asked, "completion": asked["chosen"]} if "chosen" in asked else asked
        side = render(tokenizer, answered)
        text = tokenizer.decode(side.input_ids)
        facts.append({"id": row["id"], "sides": [
            {"name": "row", "parts": [{"text": text, "trained": False}], "tokens": len(side.input_ids),
             "trained_tokens": 0}]})  # fmt: skip
    return facts


def parts(rendered: Rendered, tokenizer: Any) -> list[Facts]:
    """[{"text", "trained"}]: the tokens of a row as text, in stretches that are trained or not."""
    labelled = zip(rendered.input_ids, rendered.labels, strict=True)
    return [
        {"text": tokenizer.decode([token for token, _ in stretch]), "trained": is_trained}
        for is_trained, stretch in groupby(labelled, lambda one: one[1] != IGNORED)
    ]


def spread(lengths: Sequence[int]) -> dict[str, int]:
    """Of the lengths in tokens: the nearest-rank median and 95th percentile between the extremes."""
    ordered = sorted(lengths)

    def rank(share: float) -> int:
        return ordered[max(math.ceil(share * len(ordered)), 1) - 1]

    return {"min": ordered[0], "median": rank(0.5), "p95": rank(0.95), "max": ordered[-1]}
