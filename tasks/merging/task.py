"""Merging as a Prefect task."""

from pathlib import Path
from typing import Any

from prefect import get_run_logger, task

from tasks.artifacts import StageResult
from tasks.caching import Work
from tasks.retrying import STAGE
from tasks.runs import Run, child


@task(name="merge", task_run_name="merge {name}", **STAGE)
def merge(run: Run, name: str, *, base: StageResult, data: StageResult, trained: StageResult) -> StageResult:
    """The adapter merged into the base's 16-bit weights, checked against base + adapter."""
    logger = get_run_logger()

    def make(work: Path, output: Path) -> dict[str, Any]:
        store = run.store
        inputs = {"base": base.ref, "adapter": trained.ref, "data": data.ref}
        job = {role: str(store.fetch(ref)) for role, ref in inputs.items()}
        return child("tasks.merging", {**job, "output": str(output)}, work, on_line=logger.debug)

    upstream = {"base": base.ref.digest, "adapter": trained.ref.digest}
    result = run.once(Work("merge", 1, "merged", name, {"method": "linear"}, upstream), make)
    logger.info(
        "%s: merged; mean KL to base + adapter %.2g nats, same first choice on %.1f %% of tokens",
        *(name, result.facts["mean_kl_nats"], 100 * result.facts["top1_agreement"]),
    )
    return result
