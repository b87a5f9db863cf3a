"""Which cells a fleet needs, and their results: from the store where they are, from one process for the rest.

    recipe -> cells of base and adapters -> lookup by key -> one process scores the missing ones -> store

The base's cells hold nothing of any adapter but the documents, so the base is scored once per task and precision,
ever, whichever methods are compared with it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from platform import python_version_tuple
from typing import Any

from infra.errors import StageError
from tasks.artifacts import StageResult
from tasks.caching import Work, library_versions
from tasks.evaluation.catalogue import folder_digest
from tasks.recipe.schema import Adapter, Recipe
from tasks.runs import Run

VERSION = 2
PROBES = "probes"
PROBE_TOKENS = 32  # longest answer to a probe
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "lm_eval")
Scores = dict[str, dict[str, StageResult]]  # side -> cell -> result
BASE = "base"  # the side that is no adapter


@dataclass(frozen=True)
class Cell:
    """One task answered by one side. `spec` and `upstream` make its key; `job` is what the process needs besides."""

    side: str
    name: str
    spec: dict[str, Any]
    upstream: dict[str, str]
    job: dict[str, Any]

    @property
    def work(self) -> Work:
        return Work("score", VERSION, "scores", f"{self.side}-{self.name}", self.spec, self.upstream)

    @property
    def key(self) -> str:
        return self.work.key


def target_name(adapter: str, split: str) -> str:
    return f"{adapter}.{split}"


def cells_of(
    recipe: Recipe,
    adapters: Sequence[Adapter],
    *,
    quantization: str,
    device: str,
    base: StageResult,
    data: dict[str, StageResult],
    trained: dict[str, StageResult],
    folder_of: Callable[[StageResult], str],
) -> list[Cell]:
    """Every cell of `adapters` (which share `quantization`) and of their base, the base's first.

    A prompt is asked its own target only: its weights are the base's, so there is nothing that it could forget.
    Without examples its cells are the base's own.
    """
    evaluation = recipe.evaluation
    versions = library_versions()
    common = {
        "engine": {name: versions[name] for name in LIBRARIES} | {"python": python_version_tuple()[:2]},
        "batch_size": evaluation.batch_size,
        "quantization": quantization,
        "device": device,
    }
    suites = folder_digest(evaluation.include_path)
    prompts = {adapter.name: adapter.num_fewshot for adapter in adapters if adapter.method == "prompt"}
    asked: dict[str, tuple[dict[str, Any], dict[str, str], dict[str, Any]]] = {}
    if len(prompts) < len(adapters):
        for task in evaluation.general:
            spec = {"kind": "general", "name": task.task, **task.model_dump(exclude={"task", "margin"})}
            asked[task.task] = (spec, {"suites": suites}, {"include_path": evaluation.include_path})
    if evaluation.probes and len(prompts) < len(adapters):
        spec = {"kind": "probe", "name": PROBES, "questions": evaluation.probes, "max_new_tokens": PROBE_TOKENS}
        asked[PROBES] = (spec, {}, {})
    general = list(asked)
    targets: dict[str, list[str]] = {}
    for adapter in adapters:
        for split in adapter.target.splits:
            name = target_name(adapter.name, split)
            target = adapter.target.model_dump(include={"max_new_tokens", "limit"})
            spec = {"kind": "target", "split": split, **target}
            job = {"name": name, "data": folder_of(data[adapter.name])}
            asked[name] = (spec, {"data": data[adapter.name].ref.digest}, job)
            targets.setdefault(adapter.name, []).append(name)

    def cell(side: str, name: str) -> Cell:
        spec, upstream, job = asked[name]
        upstream = {"base": base.ref.digest, **upstream}
        if prompts.get(side):
            upstream["prompt"], job = trained[side].ref.digest, {**job, "prompt": folder_of(trained[side])}
        elif side not in prompts and side != BASE:
            upstream["adapter"] = trained[side].ref.digest
        return Cell(side, name, {**common, **spec}, upstream, {**spec, **job})

    own = {BASE: [name for names in targets.values() for name in names], **targets}
    return [cell(side, name) for side in own for name in [*([] if side in prompts else general), *own[side]]]


def score(
    run: Run,
    cells: Sequence[Cell],
    *,
    score_missing: Callable[[list[dict[str, Any]], Path], dict[str, Any]],
) -> tuple[Scores, dict[str, str]]:
    """({side: {cell: result}}, {side: why it failed}).

    `score_missing(sides, work)` runs the process for the cells that are not in the store, on first need.
    """
    store = run.store
    missing: dict[str, Cell] = {}  # by key: adapters with the same rows share their base's cells
    for cell in cells:
        if store.lookup("score", cell.key) is None:
            missing.setdefault(cell.key, cell)
    answer: dict[str, Any] = {}
    folder: dict[str, Path] = {}

    def make_for(cell: Cell) -> Callable[[Path, Path], dict[str, Any]]:
        def make(work: Path, output: Path) -> dict[str, Any]:
            if not answer:
                process = work.parent / f"evaluate-{cell.key[:12]}"
                folder.update({key: process / "cells" / key[:16] for key in missing})
                answer.update(score_missing(_sides(list(missing.values()), folder), process))
            if cell.key not in answer["facts"]:
                raise StageError(answer["failed"].get(cell.side, f"{cell.side}: {cell.name} was not scored."))
            for file in folder[cell.key].iterdir():
                file.rename(output / file.name)
            return answer["facts"][cell.key]

        return make

    scores: Scores = {}
    failed: dict[str, str] = {}
    for cell in cells:
        if cell.side in failed:
            continue
        try:
            result = run.once(cell.work, make_for(cell))
        except StageError as error:
            if cell.side == BASE or not answer:  # without the base, or with no process at all, nothing can be judged
                raise
            failed[cell.side] = str(error)
            continue
        scores.setdefault(cell.side, {})[cell.name] = result
    return scores, failed


def _sides(cells: Sequence[Cell], folder: dict[str, Path]) -> list[dict[str, Any]]:
    """The job's sides in order, each with its cells."""
    sides: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        job = {**cell.job, "name": cell.name, "key": cell.key, "output": str(folder[cell.key])}
        sides.setdefault(cell.side, []).append(job)
    return [{"name": side, "cells": jobs} for side, jobs in sides.items()]
