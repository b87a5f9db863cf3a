"""Evaluating members beside their base, here or on workers: the same scores, by the same task.

The base's own cells are one pack, sent first and as a rule answered already: they are scored once for all that will
ever be compared with them. Then the members, a few to a pack, each of which loads the base once.
"""

from collections.abc import Mapping, Sequence

from tasks.artifacts import StageResult
from tasks.evaluation.catalogue import folder_digest
from tasks.evaluation.scoring import BASE, Scores, SelfTest
from tasks.evaluation.task import evaluate
from tasks.packs.pack import Answer, Evaluated, EvaluatePack
from tasks.packs.sending import send_all
from tasks.recipe.schema import Adapter, Gate, Publish, Recipe
from tasks.runs import Run

TOGETHER = 4  # members to a pack: loading a base is soon repaid, and several workers find something to do


def evaluate_all(
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
) -> tuple[Scores, dict[str, str]]:
    """Scores of the base in this precision and of `members` (side -> adapter); and why one could not be scored."""
    if run.on == "here":
        return evaluate(
            *(run, recipe, quantization),
            members=members,
            base=base,
            data=data,
            trained=trained,
            look=look,
            self_tests=self_tests,
        )

    def pack(sides: Sequence[str], base_only: bool = False) -> EvaluatePack:
        some = {side: members[side] for side in sides}
        return EvaluatePack(
            recipe=_read_by_evaluation(recipe),
            quantization=quantization,
            members=some,
            base=base,
            data={one.name: data[one.name] for one in some.values()},
            trained={} if base_only else {side: trained[side] for side in sides if side in trained},
            suites=folder_digest(recipe.evaluation.include_path),
            look=look,
            self_tests=(),
            base_only=base_only,
        )

    sides = list(members)
    packs = [pack(sides[start : start + TOGETHER]) for start in range(0, len(sides), TOGETHER)]
    for number, one in enumerate(packs):
        if any(adapter.method != "prompt" for adapter in one.members.values()):
            packs[number] = one.model_copy(update={"self_tests": tuple(self_tests)})
            break
    alone = pack(sides, base_only=True)
    of_base, lost = send_all(run, [alone])
    if lost:
        return {}, dict.fromkeys(sides, lost[alone.title])
    answers, lost = send_all(run, packs)
    failed = {side: lost[one.title] for one in packs if one.title in lost for side in one.members}
    scores = dict(_of(of_base[alone.title]).scores)
    for one in packs:
        if one.title not in answers:
            continue
        found = _of(answers[one.title])
        if other := _base_differs(scores, found.scores):
            failed |= dict.fromkeys(one.members, other)
            continue
        scores = {**found.scores, **scores}
        failed |= found.failed
    return scores, failed


def _of(answer: Answer) -> Evaluated:
    assert answer.evaluated, "an evaluate pack was answered"
    return answer.evaluated


def _base_differs(scores: Scores, found: Scores) -> str:
    """Why members scored beside `found`'s base must not be compared with that of `scores`; nothing if they may."""
    for name, parts in found.get(BASE, {}).items():
        if [part.ref.digest for part in parts] != [part.ref.digest for part in scores[BASE][name]]:
            return (
                f"the base's own scores on {name} are not those of another worker, so nothing is compared. A pool must "
                "have one kind of device; `tunefleet doctor` on each worker says what it has."
            )
    return ""


def _read_by_evaluation(recipe: Recipe) -> Recipe:
    """`recipe` without what does not change an answer, so that a pack stays the same when that changes."""
    return recipe.model_copy(
        update={
            "adapters": recipe.adapters[:1],
            "publish": Publish(),
            "cure": None,
            "gate": Gate(looks=recipe.gate.looks),
            "evaluation": recipe.evaluation.model_copy(update={"judge": None}),
        }
    )
