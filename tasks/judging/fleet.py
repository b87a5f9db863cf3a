"""The win rate of every adapter of a fleet against its base, as the recipe's judge sees it."""

from collections.abc import Mapping, Sequence

from prefect import get_run_logger

from infra.errors import TunefleetError
from tasks.artifacts import AdapterOutcome, StageResult
from tasks.evaluation.scoring import BASE, Scores, target_name
from tasks.judging.task import judge_answers
from tasks.recipe.schema import Recipe
from tasks.runs import Run

NOT_ANSWERED = ("acc", "nll_per_token")  # targets of pairs and of plain text have no answers to compare


def win_rates(
    run: Run, recipe: Recipe, fleet: Sequence[AdapterOutcome], scores: Mapping[str, Scores]
) -> list[StageResult]:
    """Judge the answers to the target's rows; each of the fleet gets its `win_rate`, or a line in the log says why not.

    It is information: no gate looks at it, so a judge that cannot be asked ends nothing.
    """
    made = []
    for one in fleet:
        name = target_name(one.name, one.adapter.target.decides)
        if name not in one.cells or one.error or one.cells[name][0].facts["metric"] in NOT_ANSWERED:
            continue
        try:
            (base,), (own,) = scores[one.quantization][BASE][name], one.cells[name]
            result = judge_answers(run, recipe, one.name, base, own)
        except TunefleetError as error:
            get_run_logger().warning("%s: its answers were not judged: %s", one.name, error)
            continue
        one.win_rate = result.facts
        made.append(result)
    return made
