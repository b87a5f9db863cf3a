"""Whether this job recomputes activations: as the recipe says or, for `auto`, only if memory calls for it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from infra.device_memory import free_memory
from tasks.training.memory import choose_checkpointing, estimate, fits
from tasks.training.models import add_adapter, meta_base


def recomputes(job: Mapping[str, Any], rows: Sequence[Mapping[str, Sequence[int]]]) -> bool:
    """`rows` are the trainer's: token ids by column. The device is asked what is free, so it must not be in use yet."""
    asked = job["training"]["gradient_checkpointing"]
    if asked != "auto":
        return asked
    model = meta_base(Path(job["base"]))
    if job["method"] != "full":
        model = add_adapter(model, job["lora"])
    on_cpu = job["device"] == "cpu"
    options: dict[str, Any] = {
        "method": job["method"],
        "training": job["training"],
        "longest_row": max(_length(row) for row in rows),
        "device": "cpu" if on_cpu else "cuda",
        "num_processes": job["accelerate"]["num_processes"],
        "config": job["accelerate"]["config"],
        "pairs": "chosen_ids" in rows[0],
    }
    free = free_memory() // options["num_processes"] if on_cpu else torch.cuda.mem_get_info()[0]
    without = estimate(model, **options, gradient_checkpointing=False)
    if fits(without, free):
        return False
    return choose_checkpointing(without, estimate(model, **options, gradient_checkpointing=True), free)


def _length(row: Mapping[str, Sequence[int]]) -> int:
    if "input_ids" in row:
        return len(row["input_ids"])
    return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
