"""Judging as a Prefect task: the answers of one adapter against the base's. It tells; no gate looks at it."""

from pathlib import Path
from typing import Any

from prefect import get_run_logger, task

from infra import stage_process
from tasks.artifacts import StageResult
from tasks.caching import Work
from tasks.ingestion.task import import_base
from tasks.judging.answers import pairs_of
from tasks.judging.check import located
from tasks.judging.judges import asking, is_the_base, what_decides
from tasks.judging.win_rate import figures, judged, write_judgements
from tasks.recipe.schema import Base, Recipe
from tasks.retrying import STAGE
from tasks.runs import Run


@task(name="judge-answers", task_run_name="judge the answers of {adapter_name}", **STAGE)
def judge_answers(
    run: Run, recipe: Recipe, adapter_name: str, base_scores: StageResult, own_scores: StageResult
) -> StageResult:
    """records.parquet of the documents and the win rate, from both sides' records of one target."""
    judge, logger, store = recipe.evaluation.judge, get_run_logger(), run.store
    assert judge, "the recipe names no judge"
    upstream = {"base": base_scores.ref.digest, "adapter": own_scores.ref.digest}
    model = None
    if judge.model:  # not a task of its own: this one is tried again
        model = import_base.fn(run, Base(model=located(judge.model)))
        upstream["judge"] = model.ref.digest
    base_digest = store.manifest(base_scores.ref)["upstream"].get("base")
    itself = is_the_base(judge, model, base_model=recipe.base.model, base_digest=base_digest)
    asked = judge.model_dump(include={"criteria", "limit"})
    spec = {**asked, **what_decides(judge), "alpha": recipe.gate.alpha, "judges_itself": itself}

    def make(work: Path, output: Path) -> dict[str, Any]:
        base, own = (store.fetch(scores.ref) / "records.parquet" for scores in (base_scores, own_scores))
        ask = asking(run, judge, model, work=work / "judge", logger=logger)
        rows = judged(pairs_of(base, own)[: judge.limit], judge.criteria, ask)
        write_judgements(rows, output / "records.parquet")
        facts = {**figures(rows, recipe.gate.alpha), "judge": judge.name or judge.model, "judges_itself": itself}
        # Beside the verdicts, because an artifact is its content: other figures of the same verdicts are another one.
        stage_process.write_json(output / "win_rate.json", {**facts, "asked": spec})
        return facts

    result = run.once(Work("judge-answers", 1, "judgements", adapter_name, spec, upstream), make)
    facts = result.facts
    logger.info(
        "%s: win rate %.3f (%.3f to %.3f) over the base by %s; %d documents, %d without a winner",
        *(
            adapter_name,
            facts["win_rate"],
            facts["ci_low"],
            facts["ci_high"],
            facts["judge"],
            facts["n"],
            facts["ties"],
        ),
    )
    if itself:
        logger.warning("%s is the base itself, and models favour their own answers: take another judge", facts["judge"])
    return result
