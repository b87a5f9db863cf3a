"""Whether this job recomputes activations: as the recipe says or, for `auto`, only if memory calls for it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from infra.device_memory import free_memory
from infra.gpus import CPU
from tasks.training.features import Features, length
from tasks.training.launching import own_device
from tasks.training.memory import choose_checkpointing, estimate, fits
from tasks.training.models import add_adapter, meta_base


def recomputes(job: Mapping[str, Any], rows: Sequence[Features]) -> bool:
    """`rows` are the trainer's. The device is asked what is free, so it must not be in use yet.

    Several processes must all do the same, and see other memory at other times: the first decides for all.
    """
    asked = job["training"]["gradient_checkpointing"]
    if asked != "auto":
        return asked
    if job["accelerate"]["num_processes"] == 1:
        return _is_called_for(job, rows)
    state = PartialState(cpu=job["device"] == CPU)
    return broadcast_object_list([state.is_main_process and _is_called_for(job, rows)])[0]


def _is_called_for(job: Mapping[str, Any], rows: Sequence[Features]) -> bool:
    model = meta_base(Path(job["base"]))
    if job["method"] != "full":
        model = add_adapter(model, job["lora"])
    on_cpu = job["device"] == CPU
    options: dict[str, Any] = {
        "method": job["method"],
        "training": job["training"],
        "longest_row": max(map(length, rows)),
        "device": "cpu" if on_cpu else "cuda",
        "num_processes": job["accelerate"]["num_processes"],
        "config": job["accelerate"]["config"],
        "pairs": "chosen_ids" in rows[0],
    }
    if on_cpu:
        free = free_memory() // _sharers(options["num_processes"])
    else:
        free = torch.cuda.mem_get_info(own_device(job["device"]))[0]
    without = estimate(model, **options, gradient_checkpointing=False)
    if fits(without, free):
        return False
    return choose_checkpointing(without, estimate(model, **options, gradient_checkpointing=True), free)


def _sharers(num_processes: int) -> int:
    """How many of the job's processes share this machine's memory: those that its launcher started here."""
    return min(int(os.environ.get("LOCAL_WORLD_SIZE", num_processes)), num_processes)
