"""Evaluation as a Prefect task: all that share a base in one precision, beside that base, in one process."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task

from infra.gpus import device_slot, devices
from tasks.artifacts import StageResult
from tasks.evaluation.scoring import BASE, Scores, SelfTest, cells_of, score
from tasks.recipe.schema import Adapter, Recipe
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
    members: Mapping[str, Adapter],
    base: StageResult,
    data: Mapping[str, StageResult],
    trained: Mapping[str, StageResult],
    look: int = 1,
    self_tests: Sequence[SelfTest] = (),
    base_only: bool = False,
) -> tuple[Scores, dict[str, str]]:
    """Scores of the base in this precision and of `members` (side -> adapter); and why one could not be scored.

    With `base_only`, only what the base is asked because of these members.
    """
    logger = get_run_logger()
    store = run.store
    kind = "cpu" if devices() == ["cpu"] else "cuda"
    cells = cells_of(
        *(recipe, members),
        quantization=quantization,
        device=kind,
        base=base,
        data=data,
        trained=trained,
        folder_of=lambda result: str(store.fetch(result.ref)),
        look=look,
        self_tests=self_tests,
        base_only=base_only,
    )
    made_for_tests = {test.side: test for test in self_tests}

    def show(event: dict[str, Any]) -> None:
        shown = "answered" if event["score"] is None else f"{event['metric']} {event['score']:.3f}"
        logger.info(
            "%s on %s: %s (%d of %d tasks, %d documents in %.0f s)",
            *(event["side"], event["task"], shown, event["done"], event["of"], event["n"], event["scored_in_seconds"]),
        )

    def on_base(side: str) -> dict[str, Any]:
        """{role: folder} of what answers on this side; nothing for the base itself and its prompts."""
        if side in made_for_tests:
            test = made_for_tests[side]
            return {"adapter": str(store.fetch(test.adapter.ref))} if test.adapter else test.role
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
