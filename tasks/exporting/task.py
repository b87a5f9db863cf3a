"""Exporting to GGUF as a Prefect task."""

from pathlib import Path
from typing import Any

from prefect import get_run_logger, task

from tasks.artifacts import StageResult
from tasks.caching import Work
from tasks.retrying import STAGE
from tasks.runs import Run, child


@task(name="export-gguf", task_run_name="export {name} as GGUF", **STAGE)
def export_gguf(
    run: Run, name: str, *, merged: StageResult, trained: StageResult, base: StageResult, type: str
) -> StageResult:
    """The merged model as model-<type>.gguf and, where a GGUF can say it, its adapter as adapter-f16.gguf.

    For a fully fine-tuned model `merged` and `trained` are the same, and there is no adapter.
    """
    logger = get_run_logger()
    has_adapter = merged.ref.digest != trained.ref.digest

    def make(work: Path, output: Path) -> dict[str, Any]:
        store = run.store
        job = {"model": str(store.fetch(merged.ref)), "type": type, "output": str(output)}
        if has_adapter:
            job |= {"adapter": str(store.fetch(trained.ref)), "base": str(store.fetch(base.ref))}
        facts = child("tasks.exporting", job, work, on_line=logger.debug)
        return facts if has_adapter else {**facts, "adapter": "all weights were trained: there is no adapter"}

    upstream = {"merged": merged.ref.digest, "adapter": trained.ref.digest}
    result = run.once(Work("gguf", 2, "ggufs", name, {"type": type}, upstream), make)
    adapter = "with its adapter" if result.facts["adapter"] is True else f"without adapter: {result.facts['adapter']}"
    logger.info("%s: GGUF in %s, %.0f MB, %s", name, type, result.facts["bytes"] / 1e6, adapter)
    return result
