"""Evaluating members beside their base, here or on workers: the same scores, by the same task.

The base's own cells are one pack, sent first and as a rule answered already: they are scored once for all that will
ever be compared with them. Then the members, a few to a pack, each of which loads the base once.
"""

from collections.abc import Mapping, Sequence

from tasks.artifacts import StageResult
from tasks.evaluation.scoring import Scores, SelfTest
from tasks.evaluation.task import evaluate
from tasks.packs.pack import EvaluatePack
from tasks.packs.sending import send, send_all
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
    done = [send(run, pack(sides, base_only=True))]
    answers, lost = send_all(run, packs)
    failed = {side: lost[one.title] for one in packs if one.title in lost for side in one.members}
    scores: Scores = {}
    for answer in [*answers.values(), *done]:  # the base's cells are those of its own pack, which has them all
        assert answer.evaluated, "an evaluate pack was answered"
        scores |= answer.evaluated.scores
        failed |= answer.evaluated.failed
    return scores, failed


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
