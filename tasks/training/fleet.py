"""Training every member of a fleet: those with settings side by side, then the searches, one trial after the other.

A trial goes through the train task like any adapter. The best ones take the place of the member that was searched.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefect import get_run_logger

from infra.device_memory import MARGIN, Device, local_devices
from infra.errors import TransientError, TunefleetError
from tasks.artifacts import StageResult
from tasks.gathering import each_result
from tasks.recipe.schema import Adapter, Recipe
from tasks.runs import Run
from tasks.searching.search import Report
from tasks.searching.task import search_adapter
from tasks.training.task import train

Needs = Mapping[str, int]  # bytes by kind of device: cpu, cuda


@dataclass(frozen=True)
class TrainedFleet:
    recipe: Recipe  # with the kept trials as members
    data: dict[str, StageResult]  # of these members
    trained: dict[str, StageResult]
    failed: dict[str, str]  # why, by name
    transient: tuple[str, ...]  # whose failure may pass by itself
    searches: dict[str, list[dict[str, Any]]]  # records of all trials, by the name of the member that was searched


def train_fleet(
    run: Run, recipe: Recipe, base: StageResult, data: dict[str, StageResult], memory: Mapping[str, Needs]
) -> TrainedFleet:
    """Train what is to be trained; an adapter that fails does not stop the others.

    `memory` by adapter, as preflight estimates it: of `adapters_per_device`, as many share a device as fit.
    """
    limit = at_once(recipe.adapters_per_device, memory.values(), local_devices())
    if limit < recipe.adapters_per_device:
        get_run_logger().warning(
            "adapters_per_device is %d, but only %d such trainings fit on one device of this machine",
            *(recipe.adapters_per_device, limit),
        )
    learners = [adapter for adapter in recipe.adapters if adapter.method != "prompt"]
    futures = {
        adapter.name: train.submit(run, adapter, base, data[adapter.name], per_device=limit)
        for adapter in learners
        if not adapter.sweep
    }
    members = {adapter.name: [adapter] for adapter in recipe.adapters}
    found: dict[str, StageResult] = {}
    lost: dict[str, TunefleetError] = {}
    searches: dict[str, list[dict[str, Any]]] = {}
    for adapter in learners:
        if not adapter.sweep:
            continue

        def train_one(trial: Adapter, report: Report, rows: StageResult = data[adapter.name]) -> StageResult:
            return train(run, trial, base, rows, per_device=limit, on_validation=report)

        try:
            kept, searches[adapter.name] = search_adapter(adapter, train_one)
        except TunefleetError as error:
            lost[adapter.name] = error
            continue
        members[adapter.name] = [trial for trial, _ in kept]
        found |= {trial.name: result for trial, result in kept}
    trained, failed = each_result(futures)
    return TrainedFleet(
        recipe=recipe.model_copy(update={"adapters": tuple(one for some in members.values() for one in some)}),
        data={one.name: data[name] for name, some in members.items() for one in some},
        trained=trained | found,
        failed={name: str(error) for name, error in (failed | lost).items()},
        transient=tuple(name for name, error in (failed | lost).items() if isinstance(error, TransientError)),
        searches=searches,
    )


def at_once(limit: int, memory: Iterable[Needs], devices: Sequence[Device]) -> int:
    """How many trainings, at most `limit`, fit side by side on the device with least memory free; one at least.

    The largest ones are counted: whichever meet, they fit. Whether one fits alone is said elsewhere.
    """
    known = [device.free_bytes for device in devices if device.free_bytes is not None]
    if not known:
        return limit
    left = (1 - MARGIN) * min(known)
    for count, needed in enumerate(sorted((one[devices[0].type] for one in memory), reverse=True)[:limit]):
        left -= needed
        if left < 0:
            return max(count, 1)
    return limit
