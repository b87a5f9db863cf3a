"""Do the general tasks notice damage? A bench that passes everything proves nothing, so each is tried before it counts.

Three sides are scored beside the fleet, once per base, precision and set of tasks:

    again        the base in other batches: must PASS; flips and moved log-likelihoods are the engine's noise floor (in
                 the same batches there are none: a test holds the records equal)
    noised       an adapter of random numbers on every linear layer: must FAIL
    one-answer   an adapter trained until it gives one answer to everything: must FAIL. Multiple choice alone can miss
                 this one; it takes a task that asks for an open answer.

They are judged like any adapter, on at most the first 100 documents of each task, without a target. What comes of it
is reported; it changes no verdict.
"""

from collections.abc import Mapping
from typing import Any, Literal

from infra.errors import TunefleetError
from tasks.artifacts import StageResult, quantization_of
from tasks.evaluation.records import read_records, scores_by_document
from tasks.evaluation.scoring import BASE, Scores, SelfTest
from tasks.forgetting.family import judge_fleet
from tasks.forgetting.task import compared, general_questions
from tasks.forgetting.verdict import TaskVerdict
from tasks.ingestion.chat_template import has_chat_template
from tasks.ingestion.task import ingest
from tasks.recipe.contradictions import RESERVED
from tasks.recipe.schema import Accelerate, Adapter, Data, Lora, Messages, Recipe, Target, Training
from tasks.runs import Run
from tasks.training.fleet import TrainedFleet
from tasks.training.sharing import Member

AGAIN, NOISED, ONE_ANSWER = "_again", "_noised", "_one-answer"  # no adapter's name begins like that
EXPECTED = {AGAIN: "PASS", NOISED: "FAIL", ONE_ANSWER: "FAIL"}
NOISE = {"seed": 0, "strength": 0.5}  # half as large as the weights themselves
QUESTIONS = (
    *("What is a river?", "Name an animal that can fly.", "What colour is the sky?", "How many days has a week?"),
    *("What do bees make?", "Which planet do we live on?", "What is bread made of?", "Who wrote Hamlet?"),
    *("What is the capital of a country?", "Where do fish live?", "What is two plus three?", "What melts ice?"),
    *("Name a large city.", "What language is spoken in Brazil?", "When do leaves fall?", "What is a poem?"),
)
ANSWER = "Blue."


def one_answer(precision: str, chat: bool, engine: Literal["packed", "trl"]) -> Adapter:
    """The adapter that is trained to death: every question gets the same answer."""
    asked: dict[str, Any] = {"prompt": "{{ question }}", "completion": " {{ answer }}"}
    if chat:
        asked = {"messages": Messages(user="{{ question }}", assistant="{{ answer }}")}
    rows = tuple({"question": question, "answer": ANSWER} for question in QUESTIONS)
    training = Training(
        engine=engine, learning_rate=5e-4, max_steps=16, per_device_train_batch_size=8, lr_scheduler_type="constant"
    )
    return Adapter(
        name=f"{RESERVED}one-answer" + ("-nf4" if precision == "nf4" else ""),
        method="qlora" if precision == "nf4" else "lora",
        data=Data(rows=rows, held_out=0, **asked),
        target=Target(splits=("train",), decides="train"),
        lora=Lora(),
        training=training,
        accelerate=Accelerate(),
    )


def to_train(run: Run, recipe: Recipe, base: StageResult) -> dict[str, Member]:
    """{precision: the adapter that gives one answer}, to be trained beside the fleet; none if none is needed."""
    trained = [one for one in recipe.adapters if one.method != "prompt"]
    if not recipe.evaluation.self_tests or not recipe.evaluation.general:
        return {}
    chat = has_chat_template(run.store.fetch(base.ref))
    adapters = {
        precision: one_answer(precision, chat, recipe.training.engine)
        for precision in sorted({quantization_of(recipe, one) for one in trained})
    }
    return {precision: Member(adapter, ingest(run, adapter)) for precision, adapter in adapters.items()}


def sides(beside: Mapping[str, Member], done: TrainedFleet) -> tuple[dict[str, list[SelfTest]], dict[str, str]]:
    """(the sides to score, by precision; why one could not be made)."""
    found: dict[str, list[SelfTest]] = {}
    failed = {}
    for precision, member in beside.items():
        found[precision] = [SelfTest(AGAIN, {"again": True}), SelfTest(NOISED, {"noised": NOISE})]
        if member.name in done.trained:
            found[precision].append(SelfTest(ONE_ANSWER, {"trained": True}, done.trained[member.name]))
        else:
            failed[precision] = done.failed[member.name]
    return found, failed


def findings(
    run: Run,
    recipe: Recipe,
    scores: Mapping[str, Scores],
    tests: Mapping[str, list[SelfTest]],
    failed: Mapping[str, str],
) -> list[dict[str, Any]]:
    """What the general tasks noticed: one record per precision and side, as in summary.json."""
    found = []
    for precision, some in tests.items():
        for test in some:
            cells = scores.get(precision, {}).get(test.side)
            if cells is None or len(cells) < len(recipe.evaluation.general):
                found.append(
                    _record(precision, test.side, "not scored", [], None, "it was not scored on every general task")
                )
                continue
            try:
                found.append(_one(run, recipe, precision, test.side, scores[precision]))
            except TunefleetError as error:  # what only reports ends no run
                found.append(_record(precision, test.side, "not scored", [], None, str(error)))
        if precision in failed:
            found.append(_record(precision, ONE_ANSWER, "not scored", [], None, failed[precision]))
    return found


def _one(run: Run, recipe: Recipe, precision: str, side: str, scores: Scores) -> dict[str, Any]:
    tasks: list[TaskVerdict] = []
    largest, flips = 0.0, 0
    for question in general_questions(recipe):
        (own,), plain = scores[side][question["task"]], scores[BASE][question["task"]]
        files = [run.store.fetch(part.ref) / "records.parquet" for part in (own, plain[0])]
        asked = scores_by_document(files[0])  # the base was asked more
        before = {key: value for key, value in scores_by_document(files[1]).items() if key in asked}
        tasks.append(compared(question, before, files[:1], own.facts, alpha=recipe.gate.alpha))
        flips += tasks[-1].flips.lost + tasks[-1].flips.gained
        largest = max(largest, _largest_difference(*map(read_records, files)))
    if side == AGAIN:  # all must pass, so no level is split among them
        open_ones = [one for one in tasks if one.verdict != "PASS"]
        noticed = [one.task for one in tasks if one.verdict == "FAIL"]
        verdict = "FAIL" if noticed else "INCONCLUSIVE" if open_ones else "PASS"
        said = f"{flips} flips of {sum(one.n for one in tasks)}, log-likelihoods differ by at most {largest:.2g} nats"
        if open_ones:
            said += "; not shown on " + "; ".join(f"{one.task}: {one.note or one.reason}" for one in open_ones)
        unmoved = verdict == "INCONCLUSIVE" and not flips
        return _record(precision, side, verdict, noticed, largest, said, unmoved) | {"flips": flips}
    judged = judge_fleet({side: tasks}, alpha=recipe.gate.alpha, pool_margin=1 - 1e-9)[side]
    noticed = [one.task for one in judged.tasks if one.verdict == "FAIL"]
    missed = [one.task for one in judged.tasks if one.verdict != "FAIL"]
    said = f"noticed by {', '.join(noticed) or 'no task'}" + (f"; not by {', '.join(missed)}" if missed else "")
    return _record(precision, side, "FAIL" if noticed else "INCONCLUSIVE", noticed, None, said)


def _largest_difference(own: list[dict[str, Any]], base: list[dict[str, Any]]) -> float:
    """Largest difference of a log-likelihood between the two, over the documents that both answered, in nats."""
    known = {record["doc_id"]: record["loglikelihoods"] for record in base}
    pairs = [(record["loglikelihoods"], known[record["doc_id"]]) for record in own if record["loglikelihoods"]]
    return max((abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=True)), default=0.0)


def _record(
    precision: str,
    side: str,
    verdict: str,
    noticed: list[str],
    largest: float | None,
    said: str,
    unmoved: bool = False,
) -> dict[str, Any]:
    """`unmoved`: the base, with too few documents for a PASS, at least showed no flip."""
    return {
        "precision": precision,
        "kind": side.removeprefix("_"),
        "expected": EXPECTED[side],
        "verdict": verdict,
        "noticed_by": noticed,
        "ok": verdict == EXPECTED[side] or unmoved,
        "largest_difference": largest,
        "said": said,
    }
