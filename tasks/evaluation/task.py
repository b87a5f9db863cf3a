"""Evaluation as a Prefect task: all adapters that share a base in one precision, beside that base, in one process."""

from pathlib import Path
from typing import Any

from prefect import get_run_logger, task

from infra.gpus import device_slot, devices
from tasks.artifacts import StageResult
from tasks.evaluation.scoring import BASE, Scores, cells_of, score
from tasks.recipe.schema import Recipe
from tasks.retrying import STAGE
from tasks.runs import Run, child
from tasks.training.task import QUANTIZATION, device_environment


@task(name="evaluate", task_run_name="evaluate {method} adapters", **STAGE)
def evaluate(
    run: Run,
    recipe: Recipe,
    method: str,
    *,
    base: StageResult,
    data: dict[str, StageResult],
    trained: dict[str, StageResult],
) -> tuple[Scores, dict[str, str]]:
    """Scores of the base and of every trained adapter of `method`; and why an adapter could not be scored."""
    logger = get_run_logger()
    store = run.store
    quantization = QUANTIZATION[method]
    kind = "cpu" if devices() == ["cpu"] else "cuda"
    adapters = [adapter for adapter in recipe.adapters if adapter.method == method and adapter.name in trained]
    cells = cells_of(
        *(recipe, adapters),
        quantization=quantization,
        device=kind,
        base=base,
        data=data,
        trained=trained,
        data_folder=lambda name: str(store.fetch(data[name].ref)),
    )

    def show(event: dict[str, Any]) -> None:
        shown = "answered" if event["score"] is None else f"{event['metric']} {event['score']:.3f}"
        logger.info(
            "%s on %s: %s (%d of %d tasks, %d documents in %.0f s)",
            *(event["side"], event["task"], shown, event["done"], event["of"], event["n"], event["scored_in_seconds"]),
        )

    def score_missing(sides: list[dict[str, Any]], work: Path) -> dict[str, Any]:
        with device_slot(1) as device:
            job = {
                "base": str(store.fetch(base.ref)),
                "quantization": quantization,
                "device": "cpu" if device == "cpu" else "cuda:0",
                "batch_size": recipe.evaluation.batch_size,
                "sides": [
                    {**side, "adapter": None if side["name"] == BASE else str(store.fetch(trained[side["name"]].ref))}
                    for side in sides
                ],
            }
            return child(
                *("tasks.evaluation", job, work),
                on_line=logger.debug,
                on_progress=show,
                env=device_environment(device, 1),
            )

    return score(run, cells, score_missing=score_missing)
