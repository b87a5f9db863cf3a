"""Training every member of a fleet: packs and those that TRL trains side by side, then the searches.

A search trains one trial after the other. A trial goes through the train task like any adapter that is alone, and the
best ones take the place of the member that was searched.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefect import get_run_logger

from infra.device_memory import Device, local_devices
from infra.errors import TransientError, TunefleetError
from tasks.artifacts import StageResult, quantization_of
from tasks.gathering import each_result
from tasks.recipe.schema import Adapter, Recipe
from tasks.runs import Run
from tasks.searching.search import Report
from tasks.searching.task import search_adapter
from tasks.training.engines import config_of, engine_of
from tasks.training.pack_task import Pack, train_pack
from tasks.training.sharing import Member, Size, form_packs, room, rows_in_all
from tasks.training.task import train

Needs = Mapping[str, int]  # bytes: under cpu and cuda in all, under cpu_shared and cuda_shared what a pack needs once


@dataclass(frozen=True)
class TrainedFleet:
    recipe: Recipe  # with the kept trials as members
    data: dict[str, StageResult]  # of these members
    trained: dict[str, StageResult]  # also what was trained beside them
    failed: dict[str, str]  # why, by name
    transient: tuple[str, ...]  # whose failure may pass by itself
    searches: dict[str, list[dict[str, Any]]]  # records of all trials, by the name of the member that was searched


def train_fleet(
    run: Run,
    recipe: Recipe,
    base: StageResult,
    data: dict[str, StageResult],
    memory: Mapping[str, Needs],
    beside: Sequence[Member] = (),
) -> TrainedFleet:
    """Train what is to be trained; an adapter that fails does not stop the others.

    `memory` by adapter, as preflight estimates it: as many share a process, or a device, as fit. Those `beside` are
    trained with the fleet without being members of it.
    """
    devices = local_devices()
    learners = [Member(one, data[one.name]) for one in recipe.adapters if one.method != "prompt"]
    packed, alone = _by_engine([*learners, *beside], config_of(run.store, base))
    packs = {one.title: one for one in packs_of(recipe, packed, memory, devices)}
    # Beside the fleet's packs, which may fill a device, nobody trains; else as many as fit beside each other.
    fills = {one.name for one in learners} & {one.name for one in packed}
    limit = 1 if fills else _limit(recipe, [memory[one.name] for one in alone if one.name in memory], devices)
    in_packs = {title: train_pack.submit(run, pack, base) for title, pack in packs.items()}
    futures = {one.name: train.submit(run, one.adapter, base, one.data, per_device=limit) for one in alone}
    members = {adapter.name: [adapter] for adapter in recipe.adapters}
    found: dict[str, StageResult] = {}
    lost: dict[str, TunefleetError] = {}
    searches: dict[str, list[dict[str, Any]]] = {}
    for searched in (one for one in learners if one.adapter.sweep):

        def train_one(trial: Adapter, report: Report, rows: StageResult = searched.data) -> StageResult:
            return train(run, trial, base, rows, per_device=limit, on_validation=report)

        try:
            kept, searches[searched.name] = search_adapter(searched.adapter, train_one)
        except TunefleetError as error:
            lost[searched.name] = error
            continue
        members[searched.name] = [trial for trial, _ in kept]
        found |= {trial.name: result for trial, result in kept}
    trained, failed = each_result(futures)
    answers, ended = each_result(in_packs)
    for done, undone in answers.values():
        trained |= done
        failed |= undone
    failed |= lost | {one.name: error for title, error in ended.items() for one in packs[title].members}
    return TrainedFleet(
        recipe=recipe.model_copy(update={"adapters": tuple(one for some in members.values() for one in some)}),
        data={one.name: data[name] for name, some in members.items() for one in some},
        trained=trained | found,
        failed={name: str(error) for name, error in failed.items()},
        transient=tuple(name for name, error in failed.items() if isinstance(error, TransientError)),
        searches=searches,
    )


def packs_of(
    recipe: Recipe, members: Sequence[Member], memory: Mapping[str, Needs], devices: Sequence[Device]
) -> list[Pack]:
    """The packs for these devices. A member whose memory nobody estimated is taken to be as large as the largest."""
    kind = devices[0].type
    known = {one.name: memory[one.name] for one in members if one.name in memory}
    largest = max(known.values(), key=lambda needs: needs[kind], default={})

    def size_of(member: Member) -> Size:
        assert member.adapter.training, "the recipe was not resolved"
        needs = known.get(member.name, largest)
        return Size(
            name=member.name,
            quantization=quantization_of(recipe, member.adapter),
            rows=rows_in_all(member.data.facts["train"], member.adapter.training.model_dump()),
            memory=needs.get(kind, 0),
            shared=needs.get(f"{kind}_shared", 0),
        )

    by_name = {one.name: one for one in members}
    formed = form_packs(
        map(size_of, members), devices=len(devices), room=room(devices), limit=recipe.adapters_per_device
    )
    return [Pack(tuple(by_name[one.name] for one in pack)) for pack in formed]


def at_once(limit: int, memory: Iterable[Needs], devices: Sequence[Device]) -> int:
    """How many trainings, at most `limit`, fit side by side on the device with least memory free; one at least.

    The largest ones are counted: whichever meet, they fit. Whether one fits alone is said elsewhere.
    """
    left = room(devices)
    if left is None:
        return limit
    for count, needed in enumerate(sorted((one[devices[0].type] for one in memory), reverse=True)[:limit]):
        left -= needed
        if left < 0:
            return max(count, 1)
    return limit


def _by_engine(members: Iterable[Member], config: dict[str, Any]) -> tuple[list[Member], list[Member]]:
    """(those for packs, those that TRL trains); searches are in neither."""
    packed: list[Member] = []
    alone: list[Member] = []
    for one in members:
        engine = engine_of(one.adapter, config, kind=one.data.facts["kind"])
        if engine.reason:
            get_run_logger().info("%s is trained by TRL, not packed: %s", one.name, engine.reason)
        if not one.adapter.sweep:
            (packed if engine.name == "packed" else alone).append(one)
    return packed, alone


def _limit(recipe: Recipe, memory: Sequence[Needs], devices: Sequence[Device]) -> int:
    """How many trainings by TRL share a device."""
    asked = recipe.adapters_per_device or 1
    limit = at_once(asked, memory, devices)
    if limit < asked:
        get_run_logger().warning(
            "adapters_per_device is %d, but only %d such trainings fit on one device of this machine", asked, limit
        )
    return limit
