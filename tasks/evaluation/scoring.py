"""Which cells a fleet needs, and their results: from the store where they are, from one process for the rest.

    recipe -> cells of base and adapters -> lookup by key -> one process scores the missing ones -> store

The base's cells hold nothing of any adapter but the documents, so the base is scored once per task and precision,
ever, whichever methods are compared with it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from platform import python_version_tuple
from typing import Any

from infra.errors import StageError
from infra.settings import scratch_folder
from tasks.artifacts import StageResult
from tasks.caching import Work, library_versions
from tasks.evaluation.catalogue import folder_digest
from tasks.evaluation.finishing import discard
from tasks.recipe.schema import Adapter, Recipe
from tasks.runs import Run

VERSION = 5
PROBES = "probes"
PROBE_TOKENS = 32  # longest answer to a probe
LIBRARIES = (
    *("torch", "transformers", "tokenizers", "peft", "bitsandbytes", "lm_eval", "datasets"),
    *("sacrebleu", "rouge_score"),
)
BASE = "base"  # the side that is no adapter
SELF_TEST_DOCUMENTS = 100  # the fewest that graded scores are judged on; damage shows on fewer than a verdict takes
Scores = dict[str, dict[str, list[StageResult]]]  # side -> cell -> results, one for each look


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


@dataclass(frozen=True)
class SelfTest:
    """A side that shows what the general tasks notice: the base in other batches, or a damaged adapter."""

    side: str
    role: dict[str, Any]  # what the process makes of the base, see tasks/evaluation/engine.py
    adapter: StageResult | None = None  # for one that was trained


def target_name(adapter: str, split: str) -> str:
    return f"{adapter}.{split}"


def cells_of(
    recipe: Recipe,
    members: Mapping[str, Adapter],
    *,
    quantization: str,
    device: str,
    base: StageResult,
    data: Mapping[str, StageResult],
    trained: Mapping[str, StageResult],
    folder_of: Callable[[StageResult], str],
    look: int = 1,
    self_tests: Sequence[SelfTest] = (),
    base_only: bool = False,
) -> list[Cell]:
    """Every cell of `members` (side -> adapter; all share `quantization`) and of their base, the base's first.

    `trained` is by side, `data` by the adapter's name: several sides can be one adapter in several strengths. A prompt
    is asked its own target only: its weights are the base's, so there is nothing that it could forget. Without
    examples its cells are the base's own. Looks after the first hold further general documents and nothing else. With
    `base_only`, the base's cells alone, for which nothing needs to be trained yet.
    """
    evaluation, looks = recipe.evaluation, recipe.gate.looks
    versions = library_versions()
    common = {
        "engine": {name: versions[name] for name in LIBRARIES} | {"python": python_version_tuple()[:2]},
        "batch_size": evaluation.batch_size,
        "quantization": quantization,
        "device": device,
    }
    suites = folder_digest(evaluation.include_path)
    prompts = {side: one.num_fewshot for side, one in members.items() if one.method == "prompt"}
    asked: dict[str, tuple[dict[str, Any], dict[str, str], dict[str, Any]]] = {}
    whole = len(prompts) < len(members)
    if whole:
        how = {"include_path": evaluation.include_path, "confirm_run_unsafe_code": evaluation.confirm_run_unsafe_code}
        for task in evaluation.general:
            spec = {"kind": "general", "name": task.task, **task.model_dump(exclude={"task", "margin", "tier"})}
            if looks > 1:
                spec["part"] = [look, looks]
            asked[task.task] = (spec, {"suites": suites}, how)
    checked = list(asked)
    if evaluation.probes and whole and look == 1:
        spec = {"kind": "probe", "name": PROBES, "questions": evaluation.probes, "max_new_tokens": PROBE_TOKENS}
        asked[PROBES] = (spec, {}, {})
    general = list(asked)
    targets: dict[str, list[str]] = {}
    for side, adapter in members.items():
        targets[side] = [target_name(adapter.name, split) for split in adapter.target.splits] if look == 1 else []
        for name, split in zip(targets[side], adapter.target.splits, strict=False):
            target = adapter.target.model_dump(include={"max_new_tokens", "limit", "metric"})
            spec = {"kind": "target", "split": split, **target}
            job = {"name": name, "data": folder_of(data[adapter.name])}
            asked[name] = (spec, {"data": data[adapter.name].ref.digest}, job)

    def cell(side: str, name: str) -> Cell:
        spec, upstream, job = asked[name]
        upstream = {"base": base.ref.digest, **upstream}
        if prompts.get(side):
            upstream["prompt"], job = trained[side].ref.digest, {**job, "prompt": folder_of(trained[side])}
        elif side not in prompts and side != BASE:
            upstream["adapter"] = trained[side].ref.digest
        return Cell(side, name, {**common, **spec}, upstream, {**spec, **job})

    def damaged(test: SelfTest, name: str) -> Cell:
        spec, upstream, job = asked[name]
        spec = {**spec, "self_test": test.role}
        if looks == 1:
            spec["limit"] = min(spec["limit"] or SELF_TEST_DOCUMENTS, SELF_TEST_DOCUMENTS)
        upstream = {"base": base.ref.digest, **upstream}
        if test.adapter:
            upstream["adapter"] = test.adapter.ref.digest
        return Cell(test.side, name, {**common, **spec}, upstream, {**spec, **job})

    own = {BASE: list(dict.fromkeys(name for names in targets.values() for name in names))}
    own |= {} if base_only else targets
    cells = [cell(side, name) for side in own for name in [*([] if side in prompts else general), *own[side]]]
    return cells + [damaged(test, name) for test in self_tests for name in checked]


def score(
    run: Run,
    cells: Sequence[Cell],
    *,
    score_missing: Callable[[list[dict[str, Any]], Path], dict[str, Any]],
) -> tuple[Scores, dict[str, str]]:
    """({side: {cell: result}}, {side: why it failed}).

    `score_missing(sides, work)` runs the process for the cells that are not in the store, on first need. What an
    evaluation finished before it was stopped lies in work/cells, and the next one that needs it, of any run, takes it.
    """
    store = run.store
    missing: dict[str, Cell] = {}  # by key: adapters with the same rows share their base's cells
    for cell in cells:
        if store.lookup("score", cell.key) is None:
            missing.setdefault(cell.key, cell)
    answer: dict[str, Any] = {}
    folder = {key: scratch_folder(store) / "cells" / key[:16] for key in missing}

    def make_for(cell: Cell) -> Callable[[Path, Path], dict[str, Any]]:
        def make(work: Path, output: Path) -> dict[str, Any]:
            if not answer:
                process = work.parent / f"evaluate-{cell.key[:12]}"
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
        scores.setdefault(cell.side, {})[cell.name] = [result]
    for leftover in folder.values():
        discard(leftover)
    return scores, failed


def _sides(cells: Sequence[Cell], folder: dict[str, Path]) -> list[dict[str, Any]]:
    """The job's sides in order, each with its cells."""
    sides: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        job = {**cell.job, "name": cell.name, "key": cell.key, "output": str(folder[cell.key])}
        sides.setdefault(cell.side, []).append(job)
    return [{"name": side, "cells": jobs} for side, jobs in sides.items()]
