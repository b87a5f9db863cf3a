"""Reporting as a Prefect task: summary.json, results and a picture in the store, and what of it Prefect's UI shows."""

from collections.abc import Mapping, Sequence
from typing import Any

from prefect import get_run_logger, task

from tasks.artifacts import AdapterOutcome, StageResult
from tasks.evaluation.records import read_records, scores_by_document
from tasks.evaluation.scoring import BASE, PROBES, Scores
from tasks.forgetting.comparison import over_prompting
from tasks.recipe.schema import Recipe
from tasks.reporting.prefect_artifacts import leave_artifacts, leave_picture
from tasks.reporting.results import leave_results
from tasks.reporting.summary import summarise
from tasks.reporting.table import PRECISIONS
from tasks.retrying import STAGE
from tasks.runs import Run


@task(name="report", **STAGE)
def report(
    run: Run,
    recipe: Recipe,
    fleet: Sequence[AdapterOutcome],
    *,
    base: StageResult,
    data: Mapping[str, StageResult],
    made: Sequence[StageResult],
    scores: Mapping[str, Scores],
    searches: Mapping[str, list[dict[str, Any]]],
    self_tests: Sequence[dict[str, Any]],
    timings: Mapping[str, float],
) -> dict[str, Any]:
    """Write <store>/runs/<run-id>/summary.json and return its content."""
    scored = [
        part for sides in scores.values() for cells in sides.values() for parts in cells.values() for part in parts
    ]
    kept = [result for one in fleet for result in (one.trained, one.judged, one.merged, one.gguf) if result]

    def scores_of(name: str, task: str) -> dict[str, float]:
        parts = next(one for one in fleet if one.name == name).cells[task]
        return scores_by_document([run.store.fetch(part.ref) / "records.parquet" for part in parts], "doc_digest")

    summary = summarise(
        run_id=run.run_id,
        recipe=recipe,
        store=run.store_uri,
        base=base,
        fleet=fleet,
        made=[*made, *data.values(), *scored, *kept],
        probes=_probes(run, recipe.evaluation.probes, scores),
        comparisons=over_prompting(fleet, data, scores_of, alpha=recipe.gate.alpha),
        searches=searches,
        self_tests=self_tests,
        timings=timings,
    )
    summary["warnings"] = _warnings(recipe, scores)
    run.store.write_json(f"runs/{run.run_id}/summary.json", summary)
    leave_results(run.store, summary, get_run_logger().warning)
    leave_picture(run.store, summary, get_run_logger().warning)
    leave_artifacts(summary, get_run_logger().warning)
    return summary


def _warnings(recipe: Recipe, scores: Mapping[str, Scores]) -> list[str]:
    """What a reader should know of the whole run."""
    general = [one.task for one in recipe.evaluation.general]
    asked = [sides[BASE][task][0].facts for sides in scores.values() for task in general if task in sides.get(BASE, {})]
    warnings = []
    if asked and not any(facts["generated"] for facts in asked):
        warnings.append(
            "no general task asks for an open answer: a collapse onto one answer may go unnoticed; add one, "
            "e.g. capitals_open"
        )
    stock = {facts["why"] for facts in asked if facts["path"] == "stock"}
    return warnings + [f"scored by stock lm-eval, slower: {why}" for why in sorted(stock)]


def _probes(run: Run, questions: Sequence[str], scores: Mapping[str, Scores]) -> list[dict[str, Any]]:
    """[{"question", "answers": {side: text}}]; the base answers once in each precision."""
    answers: dict[str, list[str]] = {}
    several = sum(PROBES in sides.get(BASE, {}) for sides in scores.values()) > 1
    for quantization, sides in scores.items():
        for side, cells in sides.items():
            if PROBES in cells:
                name = f"{side} ({PRECISIONS[quantization]})" if side == BASE and several else side
                records = read_records(run.store.fetch(cells[PROBES][0].ref) / "records.parquet")
                answers[name] = [record["response"].strip() for record in records]
    return [
        {"question": question, "answers": {side: texts[index] for side, texts in answers.items()}}
        for index, question in enumerate(questions)
    ]
