"""Merging as a Prefect task."""

from pathlib import Path
from typing import Any, Literal

from prefect import get_run_logger, task

from infra.gpus import device_slot
from tasks.artifacts import StageResult
from tasks.caching import Work
from tasks.retrying import STAGE
from tasks.runs import Run, child
from tasks.training.launching import device_environment


@task(name="merge", task_run_name="merge {name}", **STAGE)
def merge(
    run: Run,
    name: str,
    *,
    base: StageResult,
    data: StageResult,
    trained: StageResult,
    quantization: Literal["none", "nf4"],
    into: str,
) -> StageResult:
    """The adapter merged into weights of its base, checked, and measured on the held-out rows of `data`."""
    logger = get_run_logger()

    def make(work: Path, output: Path) -> dict[str, Any]:
        store = run.store
        inputs = {"base": base.ref, "adapter": trained.ref, "data": data.ref}
        job = {role: str(store.fetch(ref)) for role, ref in inputs.items()} | spec | {"output": str(output)}
        with device_slot(1, on_wait=logger.info) as device:
            job["device"] = "cpu" if device == "cpu" else "cuda:0"
            return child("tasks.merging", job, work, on_line=logger.debug, env=device_environment(device, 1))

    spec = {"quantization": quantization, "into": into}
    upstream = {"base": base.ref.digest, "adapter": trained.ref.digest, "data": data.ref.digest}
    result = run.once(Work("merge", 3, "merged", name, spec, upstream), make)
    for one, found in result.facts["measured"].items():
        logger.info(
            "%s: merged into %s weights%s; mean KL to the judged adapter %.2g nats, same first choice on %.1f %%",
            *(name, one, "" if one == result.facts["into"] else " (not kept)"),
            *(found["mean_kl_nats"], 100 * found["top1_agreement"]),
        )
    return result
