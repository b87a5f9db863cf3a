"""Training every member of a fleet: those with settings side by side, then the searches, one trial after the other.

A trial goes through the train task like any adapter. The best ones take the place of the member that was searched.
"""

from dataclasses import dataclass
from typing import Any

from infra.errors import TunefleetError
from tasks.artifacts import StageResult
from tasks.gathering import each_result
from tasks.recipe.schema import Adapter, Recipe
from tasks.runs import Run
from tasks.searching.search import Report
from tasks.searching.task import search_adapter
from tasks.training.task import train


@dataclass(frozen=True)
class TrainedFleet:
    recipe: Recipe  # with the kept trials as members
    data: dict[str, StageResult]  # of these members
    trained: dict[str, StageResult]
    failed: dict[str, str]  # why, by name
    searches: dict[str, list[dict[str, Any]]]  # records of all trials, by the name of the member that was searched


def train_fleet(run: Run, recipe: Recipe, base: StageResult, data: dict[str, StageResult]) -> TrainedFleet:
    """Train what is to be trained; an adapter that fails does not stop the others."""
    limit = recipe.adapters_per_device
    learners = [adapter for adapter in recipe.adapters if adapter.method != "prompt"]
    futures = {
        adapter.name: train.submit(run, adapter, base, data[adapter.name], per_device=limit)
        for adapter in learners
        if not adapter.sweep
    }
    members = {adapter.name: [adapter] for adapter in recipe.adapters}
    found: dict[str, StageResult] = {}
    lost: dict[str, str] = {}
    searches: dict[str, list[dict[str, Any]]] = {}
    for adapter in learners:
        if not adapter.sweep:
            continue

        def train_one(trial: Adapter, report: Report, rows: StageResult = data[adapter.name]) -> StageResult:
            return train(run, trial, base, rows, per_device=limit, on_validation=report)

        try:
            kept, searches[adapter.name] = search_adapter(adapter, train_one)
        except TunefleetError as error:
            lost[adapter.name] = str(error)
            continue
        members[adapter.name] = [trial for trial, _ in kept]
        found |= {trial.name: result for trial, result in kept}
    trained, failed = each_result(futures)
    return TrainedFleet(
        recipe=recipe.model_copy(update={"adapters": tuple(one for some in members.values() for one in some)}),
        data={one.name: data[name] for name, some in members.items() for one in some},
        trained=trained | found,
        failed=failed | lost,
        searches=searches,
    )
