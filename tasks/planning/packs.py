"""By which engine a plan's adapters would be trained, and which of them together in one process."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from infra.device_memory import Device
from tasks.artifacts import quantization_of
from tasks.recipe.schema import Adapter, Recipe
from tasks.training.engines import engine_of
from tasks.training.memory import Memory
from tasks.training.sharing import Size, form_packs, memory_of, room, rows_in_all

Facts = dict[str, Any]


def engine_facts(adapter: Adapter, base: Path, kind: str) -> Facts:
    """The engine, and why it is TRL if the recipe would have it packed; `base` is the folder of its config.json."""
    engine = engine_of(adapter, json.loads((base / "config.json").read_text()), kind=kind)
    return {"engine": engine.name, "engine_reason": engine.reason}


def planned_packs(recipe: Recipe, adapters: Sequence[Mapping[str, Any]], devices: Sequence[Device]) -> list[Facts]:
    """Names and bytes of the packs that `adapters`, facts of the plan, make on these devices, the longest first.

    Trials of a search train one by one. The adapter that tries the general tasks is not among them; it joins a pack.
    """
    known = {one["name"]: one for one in adapters}
    sizes = [
        _size(recipe, adapter, known[adapter.name])
        for adapter in recipe.adapters
        if adapter.name in known and known[adapter.name]["engine"] == "packed" and not adapter.sweep
    ]
    packs = form_packs(sizes, devices=len(devices), room=room(devices), limit=recipe.adapters_per_device)
    return [{"adapters": [one.name for one in pack], "memory_bytes": memory_of(pack)} for pack in packs]


def _size(recipe: Recipe, adapter: Adapter, facts: Mapping[str, Any]) -> Size:
    assert adapter.training, "the recipe was not resolved"
    memory = Memory(**{part: size for part, size in facts["memory"].items() if part != "total"})
    return Size(
        name=adapter.name,
        quantization=quantization_of(recipe, adapter),
        rows=rows_in_all(facts["rows"]["train"], adapter.training.model_dump()),
        memory=memory.total,
        shared=memory.shared,
    )
