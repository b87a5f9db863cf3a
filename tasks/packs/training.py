"""Training a fleet, here or on workers: the same answer, by the same functions."""

from collections.abc import Mapping, Sequence
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
from tasks.training.sharing import Member
from tasks.training.task import train


def train_all(
    run: Run,
    recipe: Recipe,
    base: StageResult,
    data: dict[str, StageResult],
    known: Mapping[str, Any],
    beside: Sequence[Member] = (),
) -> TrainedFleet:
    """Train what is to be trained, and those `beside`, which are no members of the fleet.

    `known` are preflight's figures by adapter, for the order on workers. There each one beside is a pack of its own.
    """
    memory = {name: facts["memory"] for name, facts in known.items() if "memory" in facts}
    if run.on == "here":
        return train_fleet(run, recipe, base, data, memory, beside)
    tokens = {name: facts["tokens"] for name, facts in known.items()}
    packs = [pack_of(recipe, some, base, data, memory) for some in train_packs(recipe, tokens)]
    packs += [pack_of(recipe, (one.adapter,), base, {one.name: one.data}, {}) for one in beside]
    answers, lost = send_all(run, packs)
    whole = TrainedFleet(recipe=recipe, data=data, trained={}, failed={}, transient=(), searches={})
    for pack in packs:
        if pack.title in answers:
            part = answers[pack.title].trained
            assert part, "a train pack was answered"
            whole = _with(whole, pack, part)
        else:
            why = {one.name: lost[pack.title] for one in pack.recipe.adapters}
            whole = replace(whole, failed=whole.failed | why)
    return whole


def train_one(
    run: Run, recipe: Recipe, adapter: Adapter, base: StageResult, data: StageResult
) -> PrefectFuture[StageResult]:
    """One adapter that is no member of the recipe's fleet."""
    if run.on == "here":
        return train.submit(run, adapter, base, data, per_device=recipe.adapters_per_device or 1)
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


def _with(whole: TrainedFleet, pack: TrainPack, part: TrainedFleet) -> TrainedFleet:
    """The fleet, with what became of a pack; kept trials stand where the member stood that was searched.

    Data sets are the parent's own results, which know whether they were made in this run.
    """
    members: list[Adapter] = []
    data: dict[str, StageResult] = {}
    for adapter in whole.recipe.adapters:
        # A search is alone in its pack, and its trials share its rows.
        these = part.recipe.adapters if [adapter] == list(pack.recipe.adapters) else [adapter]
        members += these
        data |= {one.name: whole.data[adapter.name] for one in these}
    return TrainedFleet(
        recipe=whole.recipe.model_copy(update={"adapters": tuple(members)}),
        data=data,
        trained=whole.trained | part.trained,
        failed=whole.failed | part.failed,
        transient=(),
        searches=whole.searches | part.searches,
    )
