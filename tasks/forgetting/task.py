"""The gate as Prefect tasks: the verdict on one adapter, and the door that only a PASS opens."""

import json
import math
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task

from tasks.artifacts import StageResult
from tasks.caching import Work
from tasks.evaluation.records import scores_by_document
from tasks.evaluation.scoring import BASE, Scores, target_name
from tasks.forgetting.verdict import TaskVerdict, compare, judge
from tasks.publishing.release import require_pass
from tasks.recipe.schema import Adapter, Recipe
from tasks.retrying import GATE
from tasks.runs import Run


@task(name="judge", task_run_name="judge {adapter.name}", **GATE)
def judge_adapter(
    run: Run, recipe: Recipe, adapter: Adapter, trained: StageResult, scores: Scores
) -> tuple[StageResult, dict[str, Any]]:
    """The stored verdict on one adapter, and its content."""
    store = run.store
    questions = [
        ("general", general.task, general.margin or recipe.gate.margin, True) for general in recipe.evaluation.general
    ]
    questions += [
        ("target", target_name(adapter.name, split), adapter.target.gain, split == adapter.target.decides)
        for split in adapter.target.splits
    ]
    used = {
        f"{side} {name}": scores[side][name].ref.digest for _, name, _, _ in questions for side in (BASE, adapter.name)
    }

    def verdict_on(role: Any, name: str, margin: float, decides: bool) -> TaskVerdict:
        facts = scores[BASE][name].facts
        base, own = (
            scores_by_document(store.fetch(scores[side][name].ref) / "records.parquet") for side in (BASE, adapter.name)
        )
        return compare(
            task=name,
            role=role,
            metric=facts["metric"],
            base=base,
            adapter=own,
            margin=math.log1p(margin) if facts["metric"] == "nll_per_token" else margin,
            alpha=recipe.gate.alpha,
            higher_is_better=facts["higher_is_better"],
            decides=decides,
        )

    def make(work: Path, output: Path) -> dict[str, Any]:
        tasks = [verdict_on(*question) for question in questions]
        verdict, reasons = judge(tasks)
        content = {
            "adapter": adapter.name,
            "adapter_digest": trained.ref.digest,
            "verdict": verdict,
            "reasons": reasons,
            "tasks": [one.model_dump() for one in tasks],
        }
        (output / "verdict.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        return {"verdict": verdict}

    spec = {"questions": questions, "alpha": recipe.gate.alpha}
    upstream = {"adapter": trained.ref.digest, **used}
    result = run.once(Work("judge", 1, "verdicts", adapter.name, spec, upstream), make)
    content = json.loads((store.fetch(result.ref) / "verdict.json").read_text())
    get_run_logger().info("%s: %s. %s", adapter.name, content["verdict"], " ".join(content["reasons"]))
    return result, content


@task(name="gate", task_run_name="gate {name}", **GATE)
def gate(name: str, verdict: dict[str, Any], adapter_digest: str) -> None:
    """GateNotPassed unless `verdict` says PASS for exactly this adapter; never cached, never tried again."""
    require_pass(verdict, adapter_digest)
