"""Training a fleet, here or on workers: the same answer, by the same functions."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from prefect import task
from prefect.futures import PrefectFuture

from infra.errors import StageError
from tasks.artifacts import StageResult
from tasks.packs.pack import TrainPack
from tasks.packs.planner import train_packs
from tasks.packs.sending import send_all
from tasks.recipe.schema import Adapter, Recipe
from tasks.retrying import GATE
from tasks.runs import Run
from tasks.training.fleet import TrainedFleet, train_fleet
from tasks.training.task import train


def train_all(
    run: Run, recipe: Recipe, base: StageResult, data: dict[str, StageResult], known: Mapping[str, Any]
) -> TrainedFleet:
    """Train what is to be trained; `known` are preflight's figures by adapter, for the order on workers."""
    memory = {name: facts["memory"] for name, facts in known.items() if "memory" in facts}
    if run.on == "here":
        return train_fleet(run, recipe, base, data, memory)
    tokens = {name: facts["tokens"] for name, facts in known.items()}
    packs = [pack_of(recipe, some, base, data, memory) for some in train_packs(recipe, tokens)]
    answers, lost = send_all(run, packs)
    prompts = {one.name: data[one.name] for one in recipe.adapters if one.method == "prompt"}
    whole = TrainedFleet(recipe=recipe, data=prompts, trained={}, failed={}, transient=(), searches={})
    for pack in packs:
        if pack.title in answers:
            part = answers[pack.title].trained
            assert part, "a train pack was answered"
            whole = _with(whole, pack, part, data)
        else:
            why = {one.name: lost[pack.title] for one in pack.recipe.adapters}
            whole = replace(whole, data=whole.data | {name: data[name] for name in why}, failed=whole.failed | why)
    return whole


def train_one(
    run: Run, recipe: Recipe, adapter: Adapter, base: StageResult, data: StageResult
) -> PrefectFuture[StageResult]:
    """One adapter that is no member of the recipe's fleet."""
    if run.on == "here":
        return train.submit(run, adapter, base, data, per_device=recipe.adapters_per_device)
    return train_elsewhere.submit(run, recipe, adapter, base, data)


@task(name="train on a worker", task_run_name="train {adapter.name} on a worker", **GATE)
def train_elsewhere(run: Run, recipe: Recipe, adapter: Adapter, base: StageResult, data: StageResult) -> StageResult:
    pack = pack_of(recipe, (adapter,), base, {adapter.name: data}, {})
    answers, lost = send_all(run, [pack])
    if lost:
        raise StageError(lost[pack.title])
    done = answers[pack.title].trained
    assert done, "a train pack was answered"
    if adapter.name in done.failed:
        raise StageError(done.failed[adapter.name])
    return done.trained[adapter.name]


def pack_of(
    recipe: Recipe,
    adapters: tuple[Adapter, ...],
    base: StageResult,
    data: Mapping[str, StageResult],
    memory: Mapping[str, dict[str, int]],
) -> TrainPack:
    """The pack that trains `adapters`, and of the recipe only what they need, so that it stays the same."""
    only = Recipe(
        name=recipe.name, base=recipe.base, method=recipe.method, adapters=adapters,
        adapters_per_device=recipe.adapters_per_device,
    )  # fmt: skip
    return TrainPack(
        recipe=only,
        base=base,
        data={one.name: data[one.name] for one in adapters},
        memory={one.name: memory[one.name] for one in adapters if one.name in memory},
    )


def _with(whole: TrainedFleet, pack: TrainPack, part: TrainedFleet, data: Mapping[str, StageResult]) -> TrainedFleet:
    """The fleet, with what became of a pack; kept trials stand where the member stood that was searched.

    `data` are the parent's own results, which know whether they were made in this run.
    """
    first = pack.recipe.adapters[0].name  # a search is alone in its pack, and its trials share its rows
    members: list[Adapter] = []
    for adapter in whole.recipe.adapters:
        members += part.recipe.adapters if [adapter] == list(pack.recipe.adapters) else [adapter]
    return TrainedFleet(
        recipe=whole.recipe.model_copy(update={"adapters": tuple(members)}),
        data=whole.data | {name: data.get(name) or data[first] for name in part.data},
        trained=whole.trained | part.trained,
        failed=whole.failed | part.failed,
        transient=(),
        searches=whole.searches | part.searches,
    )
