"""The gate as Prefect tasks: the verdict on one adapter, and the door that only a PASS opens.

A target's `gain` is a share of documents or, for a loss per token, of perplexity: the gain g means that perplexity
falls by more than the share g, so the mean loss by more than -log(1 - g) nats. A general task's margin m lets
perplexity rise by the share m: log(1 + m) nats.
"""

import json
import math
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task

from tasks.artifacts import StageResult
from tasks.caching import Work
from tasks.evaluation.records import scores_by_document
from tasks.evaluation.scoring import BASE, Scores, target_name
from tasks.forgetting.verdict import Role, TaskVerdict, compare, judge
from tasks.publishing.release import require_pass
from tasks.recipe.schema import Adapter, Recipe
from tasks.retrying import GATE
from tasks.runs import Run


@task(name="judge", task_run_name="judge {adapter.name}", **GATE)
def judge_adapter(
    run: Run, recipe: Recipe, adapter: Adapter, trained: StageResult, scores: Scores
) -> tuple[StageResult, dict[str, Any]]:
    """The stored verdict on one adapter, and its content.

    A prompt has the base's weights: it is compared with the base on its own target, which does not vote, and the
    verdict on it is None.
    """
    store = run.store
    is_prompt = adapter.method == "prompt"
    general = () if is_prompt else recipe.evaluation.general
    questions: list[tuple[Role, str, float, bool]]
    questions = [("general", one.task, one.margin or recipe.gate.margin, True) for one in general]
    questions += [
        (
            "target",
            target_name(adapter.name, split),
            adapter.target.gain,
            split == adapter.target.decides and not is_prompt,
        )
        for split in adapter.target.splits
    ]
    used = {
        f"{side} {name}": scores[side][name].ref.digest for _, name, _, _ in questions for side in (BASE, adapter.name)
    }

    def verdict_on(role: Role, name: str, margin: float, decides: bool) -> TaskVerdict:
        facts = scores[BASE][name].facts
        base, own = (
            scores_by_document(
                store.fetch(scores[side][name].ref) / "records.parquet", "doc_digest" if is_prompt else "prompt_digest"
            )
            for side in (BASE, adapter.name)
        )
        return compare(
            task=name,
            role=role,
            metric=facts["metric"],
            base=base,
            adapter=own,
            margin=in_nats(role, margin) if facts["metric"] == "nll_per_token" else margin,
            alpha=recipe.gate.alpha,
            higher_is_better=facts["higher_is_better"],
            decides=decides,
        )

    def make(work: Path, output: Path) -> dict[str, Any]:
        tasks = [verdict_on(*question) for question in questions]
        verdict, reasons = (None, []) if is_prompt else judge(tasks)
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
    said = "compared with the base" if is_prompt else content["verdict"]
    get_run_logger().info("%s: %s. %s", adapter.name, said, " ".join(content["reasons"]))
    return result, content


def in_nats(role: Role, share: float) -> float:
    """A share of perplexity as a difference of mean losses: a fall for a target, a rise for a general task."""
    return -math.log1p(-share) if role == "target" else math.log1p(share)


@task(name="gate", task_run_name="gate {name}", **GATE)
def gate(name: str, verdict: dict[str, Any], adapter_digest: str) -> None:
    """GateNotPassed unless `verdict` says PASS for exactly this adapter; never cached, never tried again."""
    require_pass(verdict, adapter_digest)
