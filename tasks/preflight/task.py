"""The preflight as a Prefect task: every fault that can be known before training, at once."""

import json
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task

from infra.errors import RequestError
from infra.gpus import CPU, devices
from tasks.artifacts import StageResult
from tasks.caching import Work, library_versions
from tasks.curing.replay import read_prompts
from tasks.evaluation.catalogue import folder_digest
from tasks.judging.check import judge_faults
from tasks.recipe.schema import Recipe
from tasks.retrying import STAGE
from tasks.runs import Run, child


@task(name="preflight", **STAGE)
def preflight(run: Run, recipe: Recipe, base: StageResult, data: dict[str, StageResult]) -> StageResult:
    """Counts of parameters, steps and tokens per adapter; fails with every fault of the fleet."""
    logger = get_run_logger()
    faults = judge_faults(recipe.evaluation.judge) if recipe.evaluation.judge else []
    if recipe.cure and recipe.cure.replay:
        try:
            read_prompts(recipe.cure.replay.prompts)
        except RequestError as error:
            faults += error.faults
    if faults:
        raise RequestError(faults)
    adapters: list[dict[str, Any]] = [
        {
            **a.model_dump(mode="json", include={"name", "method"}),
            **{key: getattr(a, key).model_dump(mode="json") for key in ("lora", "training", "accelerate")},
            "near_copies": data[a.name].facts.get("near_copies", 0),
            "metric": a.target.metric,
        }
        for a in recipe.adapters
        if a.method != "prompt"
    ]
    evaluation = recipe.evaluation
    checked: dict[str, Any] = {
        "general": [one.model_dump(mode="json", include={"task", "metric", "limit"}) for one in evaluation.general],
        "looks": recipe.gate.looks,
        "confirm_run_unsafe_code": evaluation.confirm_run_unsafe_code,
    }
    if adapters and "gguf" in recipe.publish.what:  # only then, so that other recipes keep their keys
        checked["gguf"] = True
    # Only where several adapters may share a device does anybody ask. Workers may have other devices than this machine.
    kinds = ["cpu", "cuda"] if run.on == "workers" else [CPU if devices() == [CPU] else "cuda"]
    checked["memory"] = kinds if recipe.adapters_per_device != 1 else []
    spec = {"adapters": adapters, **checked, "versions": library_versions()}
    upstream = {"base": base.ref.digest, "suites": folder_digest(evaluation.include_path)}
    upstream |= {f"data {name}": result.ref.digest for name, result in data.items()}

    def make(work: Path, output: Path) -> dict[str, Any]:
        store = run.store
        job = {
            "base": str(store.fetch(base.ref)),
            "adapters": [{**a, "data": str(store.fetch(data[a["name"]].ref))} for a in adapters],
            **checked,
            "include_path": evaluation.include_path,
        }
        facts = child("tasks.preflight", job, work, on_line=logger.debug)
        # The store keeps one artifact for the same bytes: what later runs read must be among them.
        (output / "facts.json").write_text(json.dumps(facts, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
        return facts

    result = run.once(Work("preflight", 5, "preflights", recipe.name, spec, upstream), make)
    for name, facts in result.facts.items():
        for warning in facts["warnings"]:
            logger.warning("%s: %s", name, warning)
    return result
