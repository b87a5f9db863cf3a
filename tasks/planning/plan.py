"""What a run of a recipe would do, without doing any of it: steps, parameters, memory, time, disk, what it can show.

Rows are read and rendered as the run will do it; the model is its architecture alone. Nothing is started, no weight is
loaded, and nothing is written to the store.
"""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infra.device_memory import MARGIN, Device, local_devices
from infra.errors import Fault, RequestError
from infra.storage import Store
from tasks.exporting.possible import expected_bytes
from tasks.planning.base import PlannedBase, look_at, meta_model
from tasks.planning.decisions import power_of
from tasks.planning.duration import Speed, guessed_speed, matmul_flops, measured_speed
from tasks.planning.general import few_documents, look_at_general
from tasks.planning.made import made
from tasks.planning.measured import measured_by_task
from tasks.planning.packs import engine_facts, planned_packs
from tasks.planning.rows import DataSet, Lengths, data_set, measure
from tasks.preflight.guards import warnings
from tasks.recipe.schema import Adapter, Recipe
from tasks.training.checkpoints import KEPT
from tasks.training.memory import Memory, choose_checkpointing, estimate, fits
from tasks.training.methods import count
from tasks.training.models import add_adapter
from tasks.training.schedule import epochs_of, steps_of
from tasks.training.work import train_work

Facts = dict[str, Any]


def make_plan(recipe: Recipe, store_uri: str, only: str | None = None) -> Facts:
    """The plan of every adapter, or of `only` one, as JSON; RequestError with all faults of what it looks at."""
    store, devices, faults = Store(store_uri), local_devices(), []
    base: PlannedBase | None = None
    try:
        base = look_at(recipe.base, store)
        planner = _Planner(store, base, devices, recipe)
    except RequestError as error:
        faults += list(error.faults)
        base, planner = None, _Planner(store, None, devices, recipe)
    try:
        known = look_at_general(recipe.evaluation)
    except RequestError as error:
        faults += error.faults
    faults += few_documents(recipe.evaluation.general, recipe.gate.looks, recipe.evaluation.include_path)
    adapters = []
    with tempfile.TemporaryDirectory(prefix="tunefleet-plan-") as scratch:
        for adapter in (one for one in recipe.adapters if only in (None, one.name)):
            try:
                adapters.append(planner.plan(adapter, Path(scratch)))
            except RequestError as error:
                faults += [Fault(str(fault), f"adapter {adapter.name!r}") for fault in error.faults]
    if faults or base is None:
        raise RequestError(list(dict.fromkeys(faults)))
    measured = measured_by_task(store, base.ref.digest) if base.ref else {}
    times = [adapter["seconds"] for adapter in adapters if adapter["method"] != "prompt"]
    import_bytes = 0 if base.ref else 2 * planner.parameters
    needed = import_bytes + sum(adapter["disk"]["total"] for adapter in adapters)
    return {
        "recipe": recipe.name,
        "store": store.root,
        "base": {
            "model": recipe.base.model,
            "parameters": planner.parameters,
            "digest": base.ref.digest if base.ref else None,
            "cached": bool(base.ref),
            "notes": base.notes(),
        },
        "devices": [{"name": one.name, "kind": one.kind, "free_bytes": one.free_bytes} for one in devices],
        "adapters": adapters,
        "packs": planned_packs(recipe, adapters, devices),
        "power": power_of(recipe, adapters, known, measured),
        "seconds": None if None in times else sum(times),
        "disk": {"base": import_bytes, "total": needed, "free": _free_disk(store)},
    }


class _Planner:
    """Plans one adapter after the other; what several have in common is worked out once."""

    def __init__(self, store: Store, base: PlannedBase | None, devices: Sequence[Device], recipe: Recipe):
        self.store, self.base, self.devices, self.recipe = store, base, devices, recipe
        self.parameters = sum(p.numel() for p in meta_model(base).parameters()) if base else 0
        self._counts: dict[str, tuple[int, int]] = {}
        self._memory: dict[str, Memory] = {}
        self._flops: float | None = None

    def plan(self, adapter: Adapter, scratch: Path) -> Facts:
        assert adapter.lora and adapter.training and adapter.accelerate, "the recipe was not resolved"
        data = data_set(adapter, self.store, scratch)
        training = adapter.training.model_dump(mode="json")
        facts: Facts = {
            "name": adapter.name,
            "method": adapter.method,
            "kind": data.report["kind"],
            "rows": {side: data.report.get(side, 0) for side in ("train", "validation", "held_out")},
            "cached": {"data": bool(data.ref), "training": False},
            "warnings": [],
            **dict.fromkeys(
                ("steps", "longest_row", "tokens_per_epoch", "tokens", "trainable_params", "total_params", "memory",
                 "gradient_checkpointing", "does_not_fit", "seconds", "speed", "engine", "engine_reason"),
            ),
            "trials": adapter.sweep.n_trials if adapter.sweep else 1,
            "processes": adapter.accelerate.num_processes,
            "fits": [],
            "disk": {"adapter": 0, "checkpoints": 0, "merged": 0, "gguf": 0, "total": 0},
        }  # fmt: skip
        if self.base is None:
            return facts
        rows = data.read("train")
        faults: list[Fault] = []
        lengths = None
        if self.base.tokenizer:
            try:
                lengths = measure(self.base.tokenizer, rows, training["max_length"])
                if validation := data.read("validation"):
                    measure(self.base.tokenizer, validation, training["max_length"], what="validation")
            except RequestError as error:
                faults += error.faults
        else:
            facts["warnings"].append(
                "the base has no tokenizer, so tokens are unknown; memory is for rows of "
                f"max_length={training['max_length']}"
            )
        if adapter.method == "prompt":
            if faults:
                raise RequestError(faults)
            return facts
        try:
            facts["trainable_params"], facts["total_params"] = self._count(adapter)
        except RequestError as error:
            faults += error.faults
        if faults:
            raise RequestError(faults)
        if self.base.tokenizer:
            lora = None if adapter.method == "full" else adapter.lora.model_dump()
            near_copies = data.report.get("near_copies", 0)
            facts["warnings"] += warnings(self.base.tokenizer, rows=len(rows), near_copies=near_copies, lora=lora)
        facts |= engine_facts(adapter, self.base.folder, facts["kind"])
        self._length_facts(facts, adapter, lengths, len(rows), training)
        self._memory_facts(facts, adapter, lengths.longest if lengths else training["max_length"], training)
        self._disk_facts(facts, adapter)
        self._cache_facts(facts, adapter, data)
        self._time_facts(facts, adapter, lengths)
        return facts

    def _length_facts(
        self, facts: Facts, adapter: Adapter, lengths: Lengths | None, rows: int, training: Facts
    ) -> None:
        facts["steps"] = steps_of(rows, training, facts["processes"])
        if lengths is None:
            return
        facts["longest_row"], facts["tokens_per_epoch"] = lengths.longest, lengths.tokens
        facts["tokens"] = round(epochs_of(rows, training, facts["processes"]) * lengths.tokens)
        if lengths.measured < rows:
            facts["warnings"].append(f"tokens are scaled up from {lengths.measured:,} of {rows:,} rows")

    # --- parameters and memory

    def _model(self, adapter: Adapter) -> Any:
        assert self.base and adapter.lora
        model = meta_model(self.base)
        return model if adapter.method == "full" else add_adapter(model, adapter.lora.model_dump())

    def _count(self, adapter: Adapter) -> tuple[int, int]:
        key = f"{adapter.method == 'full'} {adapter.lora}"
        if key not in self._counts:
            self._counts[key] = count(self._model(adapter))
        return self._counts[key]

    def _estimate(self, adapter: Adapter, facts: Facts, longest: int, training: Facts, checkpointing: bool) -> Memory:
        assert adapter.accelerate
        batch = training["per_device_train_batch_size"]
        key = f"{adapter.method} {adapter.lora} {batch} {longest} {facts['kind']} {adapter.accelerate} {checkpointing}"
        if key not in self._memory:
            self._memory[key] = estimate(
                self._model(adapter),
                method=str(adapter.method),
                training=training,
                longest_row=longest,
                gradient_checkpointing=checkpointing,
                device=self.devices[0].type,
                num_processes=facts["processes"],
                config=adapter.accelerate.config,
                pairs=facts["kind"] == "preference",
            )
        return self._memory[key]

    def _memory_facts(self, facts: Facts, adapter: Adapter, longest: int, training: Facts) -> None:
        asked = training["gradient_checkpointing"]
        copies = facts["processes"] if self.devices[0].type == "cpu" else 1  # processes that share a device's memory
        roomiest = max((one.free_bytes or 0 for one in self.devices), default=0) // copies
        known = any(one.free_bytes is not None for one in self.devices)
        memory = self._estimate(adapter, facts, longest, training, checkpointing=asked is True)
        checkpointing = asked is True
        if asked == "auto" and known and not fits(memory, roomiest):
            recomputing = self._estimate(adapter, facts, longest, training, checkpointing=True)
            if choose_checkpointing(memory, recomputing, roomiest):
                memory, checkpointing = recomputing, True
        facts["memory"], facts["gradient_checkpointing"] = memory.as_json(), checkpointing
        facts["fits"] = [
            {
                "device": one.name,
                "at_once": None
                if one.free_bytes is None
                else int((1 - MARGIN) * one.free_bytes // (copies * memory.total)),
            }
            for one in self.devices
        ]
        usable = [one for one in facts["fits"] if one["at_once"] != 0]
        wanted = facts["processes"] if copies == 1 else 1
        if len(self.devices) < wanted:
            facts["does_not_fit"] = f"wants {wanted} devices, and there are {len(self.devices)}; lower num_processes"
        elif len(usable) < wanted:
            facts["does_not_fit"] = _does_not_fit(memory.total * copies, self.devices, adapter, checkpointing)
        limit = 1 if facts["engine"] == "packed" else self.recipe.adapters_per_device or 1
        fewest = min((one["at_once"] for one in usable if one["at_once"]), default=limit)
        if fewest < limit:
            facts["warnings"].append(f"adapters_per_device is {limit}, but only {fewest} such jobs fit on one device")

    # --- disk, cache, time

    def _disk_facts(self, facts: Facts, adapter: Adapter) -> None:
        assert self.base and adapter.training
        trains, publish, whole = facts["trainable_params"], self.recipe.publish, adapter.method == "full"
        adapter_bytes = 2 * trains if whole else 4 * trains  # a model goes back to 16 bits
        model_bytes = expected_bytes(meta_model(self.base), publish.gguf.type) if "gguf" in publish.what else 0
        disk = {
            "adapter": adapter_bytes,
            # float32 weights and AdamW's two moments, one more while it is written; and the best weights
            "checkpoints": ((KEPT + 1) * 12 + 4 * adapter.training.load_best_model_at_end) * trains,
            "merged": 2 * facts["total_params"] if {"merged", "gguf"} & set(publish.what) and not whole else 0,
            "gguf": model_bytes and model_bytes + (0 if whole else 2 * trains),  # the adapter's A and B are f16 there
        }
        facts["disk"] = {**disk, "total": sum(disk.values()) + (facts["trials"] - 1) * adapter_bytes}

    def _cache_facts(self, facts: Facts, adapter: Adapter, data: DataSet) -> None:
        assert self.base
        if adapter.sweep:
            return  # each of its trials has a key of its own
        if self.base.ref and data.ref:
            work = train_work(adapter, base=self.base.ref.digest, data=data.ref.digest)
            facts["cached"]["training"] = made(self.store, work) is not None

    def _time_facts(self, facts: Facts, adapter: Adapter, lengths: Lengths | None) -> None:
        assert self.base
        if facts["cached"]["training"]:
            facts["seconds"], facts["speed"] = 0.0, {"tokens_per_second": None, "source": "nothing to do: in the store"}
        elif lengths and not facts["does_not_fit"]:
            speed = self._speed(facts, adapter)
            facts["seconds"] = facts["trials"] * facts["tokens"] / speed.tokens_per_second
            facts["speed"] = {"tokens_per_second": round(speed.tokens_per_second, 1), "source": speed.source}

    def _speed(self, facts: Facts, adapter: Adapter) -> Speed:
        assert self.base
        device, processes = self.devices[0].type, facts["processes"]
        if self.base.ref:
            digest = self.base.ref.digest
            if speed := measured_speed(
                self.store, base=digest, method=str(adapter.method), device=device, processes=processes
            ):
                return speed
        if self._flops is None:
            hidden = meta_model(self.base).get_output_embeddings().weight.shape[1]
            self._flops = matmul_flops(device, hidden, facts["longest_row"])
        return guessed_speed(
            parameters=facts["total_params"],
            full=adapter.method == "full",
            checkpointing=facts["gradient_checkpointing"],
            flops=self._flops * (processes if device == "cuda" else 1),
        )


def _does_not_fit(needed: int, devices: Sequence[Device], adapter: Adapter, checkpointing: bool) -> str:
    assert adapter.training
    there = ", ".join(f"{one.name} has {(one.free_bytes or 0) / 2**30:.1f} GiB free" for one in devices)
    ways = [] if adapter.method == "qlora" else ["method: qlora"]
    if not checkpointing:
        ways.append("gradient_checkpointing: true")
    if adapter.training.per_device_train_batch_size > 1:
        ways.append("a smaller per_device_train_batch_size")
    advice = ", ".join([*ways, "shorter rows or a smaller base"])
    return f"does not fit: needs {needed / 2**30:.1f} GiB, {there} ({MARGIN:.0%} is kept as a margin); use {advice}"


def _free_disk(store: Store) -> int | None:
    """Bytes free where the store is or will be; None for a remote one."""
    if not store.is_local:
        return None
    folder = Path(store.root)
    while not folder.is_dir():
        folder = folder.parent
    return shutil.disk_usage(folder).free
