"""The gate as Prefect tasks: what the records say of one adapter, the verdicts on a fleet, and the door.

    records of base and adapter -> compare: a test for each task, and the flips
                                -> judge: all adapters of a fleet together, because each is one more chance to be wrong
                                -> gate

A target's `gain` is a mean score between 0 and 1 or, for a loss per token, a share of perplexity: the gain g means that
perplexity falls by more than the share g, so the mean loss by more than -log(1 - g) nats. A general task's margin m
lets perplexity rise by the share m: log(1 + m) nats.
"""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from prefect import get_run_logger, task

from infra.errors import StageError
from tasks.artifacts import StageResult
from tasks.caching import Work
from tasks.evaluation.records import Same, chance_of, clusters_by_document, read_records, scores_by_document
from tasks.evaluation.scoring import BASE, Scores, target_name
from tasks.forgetting.family import judge_fleet
from tasks.forgetting.flips import flips_of, write_flips
from tasks.forgetting.verdict import Role, TaskVerdict, compare
from tasks.publishing.release import require_pass
from tasks.recipe.schema import Adapter, Recipe
from tasks.retrying import GATE
from tasks.runs import Run

FLIPS = "flips"  # folder of a verdict: one file a task


def questions_of(recipe: Recipe, adapter: Adapter) -> list[dict[str, Any]]:
    """What is asked of an adapter: each task with its margin, its weight in the verdict, and what it is compared with.

    A prompt has the base's weights: it is compared with the base on its own target, which does not vote.
    """
    is_prompt = adapter.method == "prompt"
    questions: list[dict[str, Any]] = []
    if not is_prompt:
        questions += general_questions(recipe)
    for split in adapter.target.splits:
        decides = split == adapter.target.decides
        over = adapter.target.over if decides and not is_prompt else BASE
        name, gain = target_name(adapter.name, split), adapter.target.gain
        questions.append({"role": "target", "task": name, "margin": gain, "decides": decides and not is_prompt})
        questions[-1] |= {"over": over, "split": split}
    return questions


def general_questions(recipe: Recipe) -> list[dict[str, Any]]:
    margin = recipe.gate.margin
    return [
        {"role": "general", "task": one.task, "margin": one.margin or margin, "tier": one.tier, "decides": True}
        for one in recipe.evaluation.general
    ]


@task(name="compare", task_run_name="compare {side}", **GATE)
def compare_adapter(
    run: Run, recipe: Recipe, side: str, adapter: Adapter, scores: Scores, prompted: Scores, *, alpha: float
) -> StageResult:
    """What the records of one side say, task by task: the tests before any correction, and the flips.

    `scores` are those of the adapter's own precision, `prompted` those of all prompts, by name. StageError if the
    prompt that is to be surpassed was not scored.
    """
    store = run.store
    is_prompt = adapter.method == "prompt"
    questions = questions_of(recipe, adapter)

    def parts(of: Scores, one_side: str, name: str) -> list[StageResult]:
        return of[one_side][name]

    def reference(question: Mapping[str, Any]) -> list[StageResult]:
        over = question.get("over", BASE)
        if over == BASE:
            return parts(scores, BASE, question["task"])
        if over not in prompted:
            raise StageError(f"{side} is to surpass {over}, which was not scored: see why there.")
        return parts(prompted, over, target_name(over, question["split"]))

    used = {
        f"{who} {question['task']} {number}": part.ref.digest
        for question in questions
        for who, some in (("base", reference(question)), ("own", parts(scores, side, question["task"])))
        for number, part in enumerate(some)
    }

    def files(some: list[StageResult]) -> list[Path]:
        return [store.fetch(part.ref) / "records.parquet" for part in some]

    def one_task(question: Mapping[str, Any], output: Path) -> TaskVerdict:
        own = parts(scores, side, question["task"])
        over = question.get("over", BASE)
        same: Same = "doc_digest" if is_prompt or over != BASE else "prompt_digest"
        before, after = files(reference(question)), files(own)
        facts = own[0].facts
        lists = [[record for path in paths for record in read_records(path)] for paths in (before, after)]
        found = flips_of(*lists, higher_is_better=facts["higher_is_better"])
        write_flips(output / FLIPS / f"{question['task']}.jsonl", found)
        return compared(
            question,
            scores_by_document(before, same),
            after,
            facts,
            same=same,
            alpha=alpha,
            kl=_mean_kl(own),
            over="the base" if over == BASE else over,
            alpha_of_run=recipe.gate.alpha,
        )

    def make(work: Path, output: Path) -> dict[str, Any]:
        (output / FLIPS).mkdir()
        tasks = [one_task(question, output).model_dump() for question in questions]
        (output / "tasks.json").write_text(json.dumps(tasks, indent=1, ensure_ascii=False) + "\n")
        return {"tasks": len(tasks)}

    spec = {"questions": questions, "alpha": alpha, "alpha_of_run": recipe.gate.alpha}
    return run.once(Work("compare", 1, "comparisons", side, spec, used), make)


def compared(
    question: Mapping[str, Any],
    before: Mapping[str, float],
    after: Sequence[Path],
    facts: Mapping[str, Any],
    *,
    same: Same = "prompt_digest",
    **options: Any,
) -> TaskVerdict:
    """One question's test: scores before, by document, and the records after, whose cell has these `facts`."""
    role, margin = question["role"], question["margin"]
    return compare(
        task=question["task"],
        role=role,
        metric=facts["metric"],
        base=before,
        adapter=scores_by_document(after, same),
        margin=in_nats(role, margin) if facts["metric"] == "nll_per_token" else margin,
        higher_is_better=facts["higher_is_better"],
        decides=question["decides"],
        tier=question.get("tier", "critical"),
        clusters=clusters_by_document(after, same),
        chance=chance_of(after),
        **options,
    )


def _mean_kl(parts: list[StageResult]) -> float | None:
    """Mean KL divergence from the base over the scored tokens that it was measured on, in nats; None if on none."""
    known = [(part.facts["kl"], part.facts["kl_tokens"]) for part in parts if part.facts.get("kl") is not None]
    tokens = sum(count for _, count in known)
    return sum(kl * count for kl, count in known) / tokens if tokens else None


@task(name="judge", **GATE)
def judge_adapters(
    run: Run,
    members: Mapping[str, Adapter],
    trained: Mapping[str, StageResult],
    compared: Mapping[str, StageResult],
    *,
    alpha: float,
    pool_margin: float,
    adjust: Literal["holm", "none"],
) -> dict[str, tuple[StageResult, dict[str, Any]]]:
    """{side: the stored verdict, and its content}; all that are judged together are one family. A prompt's is None."""
    logger = get_run_logger()
    folders = {side: run.store.fetch(result.ref) for side, result in compared.items()}
    tasks = {
        side: [TaskVerdict.model_validate(one) for one in json.loads((folder / "tasks.json").read_text())]
        for side, folder in folders.items()
    }
    family = [side for side in compared if members[side].method != "prompt"]
    judged = judge_fleet({side: tasks[side] for side in family}, alpha=alpha, pool_margin=pool_margin, adjust=adjust)
    spec = {"alpha": alpha, "pool_margin": pool_margin, "adjust": adjust}
    together = {f"family {side}": compared[side].ref.digest for side in family}
    answers = {}
    for side, result in compared.items():
        one = judged.get(side)
        content = {
            "adapter": members[side].name,
            "adapter_digest": trained[side].ref.digest,
            "verdict": one.verdict if one else None,
            "reasons": one.reasons if one else [],
            "tasks": [task.model_dump() for task in (one.tasks if one else tasks[side])],
            "rule": spec,
        } | (one.model_dump(include={"warnings", "pool", "p_value", "p_adjusted"}) if one else {})
        upstream = {"adapter": trained[side].ref.digest, "own": result.ref.digest, **(together if one else {})}
        stored = run.once(Work("judge", 2, "verdicts", side, spec, upstream), _writer(content, folders[side]))
        answers[side] = stored, content
        said = f"{one.verdict}. {' '.join(one.reasons)}" if one else "compared with the base."
        logger.info("%s: %s", side, said)
    return answers


def _writer(content: dict[str, Any], compared: Path) -> Any:
    def make(work: Path, output: Path) -> dict[str, Any]:
        shutil.copytree(compared / FLIPS, output / FLIPS)
        (output / "verdict.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        return {"verdict": content["verdict"]}

    return make


def in_nats(role: Role, share: float) -> float:
    """A share of perplexity as a difference of mean losses: a fall for a target, a rise for a general task."""
    return -math.log1p(-share) if role == "target" else math.log1p(share)


@task(name="gate", task_run_name="gate {name}", **GATE)
def gate(name: str, verdict: dict[str, Any], adapter_digest: str, override: str | None = None) -> None:
    """GateNotPassed unless `verdict` says PASS for exactly this adapter; never cached, never tried again.

    `override` is a person's reason to let it through without one.
    """
    require_pass(verdict, adapter_digest, override)
