"""Reporting as a Prefect task: summary.json in the store, and the same as a table artifact in Prefect's UI."""

from collections.abc import Mapping, Sequence
from typing import Any

from prefect import task
from prefect.artifacts import create_table_artifact

from tasks.artifacts import AdapterOutcome, StageResult
from tasks.evaluation.records import read_records
from tasks.evaluation.scoring import PROBES, Scores
from tasks.recipe.schema import Recipe
from tasks.reporting.summary import summarise
from tasks.retrying import STAGE
from tasks.runs import Run


@task(name="report", **STAGE)
def report(
    run: Run,
    recipe: Recipe,
    fleet: Sequence[AdapterOutcome],
    *,
    base: StageResult,
    made: Sequence[StageResult],
    scores: Mapping[str, Scores],
    timings: Mapping[str, float],
) -> dict[str, Any]:
    """Write <store>/runs/<run-id>/summary.json and return its content."""
    scored = [cell for sides in scores.values() for cells in sides.values() for cell in cells.values()]
    kept = [result for one in fleet for result in (one.trained, one.judged, one.merged) if result]
    summary = summarise(
        run_id=run.run_id,
        recipe=recipe,
        store=run.store_uri,
        base=base,
        fleet=fleet,
        made=[*made, *scored, *kept],
        probes=_probes(run, recipe.evaluation.probes, scores),
        timings=timings,
    )
    run.store.write_json(f"runs/{run.run_id}/summary.json", summary)
    rows = [
        {"adapter": adapter["name"], "status": adapter["status"]}
        | {key: task[key] for key in ("task", "role", "n", "base", "adapter", "delta", "verdict")}
        for adapter in summary["adapters"]
        for task in adapter["tasks"]
    ]
    create_table_artifact(table=rows, key="summary", description=f"Run {run.run_id}")
    return summary


def _probes(run: Run, questions: Sequence[str], scores: Mapping[str, Scores]) -> list[dict[str, Any]]:
    """[{"question", "answers": {side: text}}]; the base is named once per method that it was scored for."""
    answers: dict[str, list[str]] = {}
    for method, sides in scores.items():
        for side, cells in sides.items():
            if PROBES in cells:
                name = f"{side} ({method})" if side == "base" and len(scores) > 1 else side
                records = read_records(run.store.fetch(cells[PROBES].ref) / "records.parquet")
                answers[name] = [record["response"].strip() for record in records]
    return [
        {"question": question, "answers": {side: texts[index] for side, texts in answers.items()}}
        for index, question in enumerate(questions)
    ]
