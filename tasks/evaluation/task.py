"""Evaluation as a Prefect task: all that share a base in one precision, beside that base, in one process."""

from pathlib import Path
from typing import Any

from prefect import get_run_logger, task

from infra.gpus import device_slot, devices
from tasks.artifacts import StageResult, quantization_of
from tasks.evaluation.scoring import BASE, Scores, cells_of, score
from tasks.recipe.schema import Recipe
from tasks.retrying import STAGE
from tasks.runs import Run, child
from tasks.training.launching import device_environment

ROLES = {"adapters": "adapter", "models": "model"}  # by the kind of artifact, what stands on or in place of the base


@task(name="evaluate", task_run_name="evaluate beside the base in {quantization}", **STAGE)
def evaluate(
    run: Run,
    recipe: Recipe,
    quantization: str,
    *,
    base: StageResult,
    data: dict[str, StageResult],
    trained: dict[str, StageResult],
) -> tuple[Scores, dict[str, str]]:
    """Scores of the base in this precision and of all that are compared with it; and why one could not be scored."""
    logger = get_run_logger()
    store = run.store
    kind = "cpu" if devices() == ["cpu"] else "cuda"
    adapters = [a for a in recipe.adapters if a.name in trained and quantization_of(recipe, a) == quantization]
    cells = cells_of(
        *(recipe, adapters),
        quantization=quantization,
        device=kind,
        base=base,
        data=data,
        trained=trained,
        folder_of=lambda result: str(store.fetch(result.ref)),
    )

    def show(event: dict[str, Any]) -> None:
        shown = "answered" if event["score"] is None else f"{event['metric']} {event['score']:.3f}"
        logger.info(
            "%s on %s: %s (%d of %d tasks, %d documents in %.0f s)",
            *(event["side"], event["task"], shown, event["done"], event["of"], event["n"], event["scored_in_seconds"]),
        )

    def on_base(side: str) -> dict[str, str]:
        """{role: folder} of what answers on this side; nothing for the base itself and its prompts."""
        role = None if side == BASE else ROLES.get(trained[side].ref.kind)
        return {role: str(store.fetch(trained[side].ref))} if role else {}

    def score_missing(sides: list[dict[str, Any]], work: Path) -> dict[str, Any]:
        with device_slot(1) as device:
            job = {
                "base": str(store.fetch(base.ref)),
                "quantization": quantization,
                "device": "cpu" if device == "cpu" else "cuda:0",
                "batch_size": recipe.evaluation.batch_size,
                "sides": [{**side, **on_base(side["name"])} for side in sides],
            }
            return child(
                *("tasks.evaluation", job, work),
                on_line=logger.debug,
                on_progress=show,
                env=device_environment(device, 1),
            )

    return score(run, cells, score_missing=score_missing)
