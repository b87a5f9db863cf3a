"""What a pack has memory for: activations of all its rows, and a base kept as 16 bits where it is stored in 4."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from infra.device_memory import free_memory
from infra.gpus import CPU
from tasks.training.features import Features, length
from tasks.training.memory import Memory, choose_checkpointing, estimate, fits
from tasks.training.models import add_adapter, meta_base

SHARED = ("weights", "workspace", "overhead")  # of a pack's memory: there once


def recomputes(job: Mapping[str, Any], rows: Mapping[str, Sequence[Features]]) -> bool:
    """Whether activations are recomputed: if a member's recipe says so or, for `auto`, if memory calls for it.

    `rows` by member. The device is asked what is free, so it must not be in use yet.
    """
    asked = [one["training"]["gradient_checkpointing"] for one in job["members"]]
    if "auto" not in asked or True in asked:
        return True in asked
    longest = {name: max(map(length, some)) for name, some in rows.items()}
    free = free_memory() if job["device"] == CPU else torch.cuda.mem_get_info(job["device"])[0]
    without = needed(job, longest, checkpointing=False)
    return not fits(without, free) and choose_checkpointing(without, needed(job, longest, checkpointing=True), free)


def needed(job: Mapping[str, Any], longest_rows: Mapping[str, int], *, checkpointing: bool) -> Memory:
    """Memory of the pack's process: what is shared once, and for each member what is its own."""
    device = "cpu" if job["device"] == CPU else "cuda"
    estimates = []
    for one in job["members"]:
        adapted = add_adapter(meta_base(Path(job["base"])), one["lora"])
        estimates.append(
            estimate(
                adapted,
                method=one["method"],
                training=one["training"],
                longest_row=longest_rows[one["name"]],
                gradient_checkpointing=checkpointing,
                device=device,
            )
        )
    return Memory(
        **{field.name: _joined(field.name, [getattr(one, field.name) for one in estimates]) for field in fields(Memory)}
    )


def _joined(field: str, some: Sequence[int]) -> int:
    return max(some) if field in SHARED else sum(some)


def keeps_dequantised(model: Any, device: str) -> bool:
    """Whether the weights that 4 bits stand for are made once for good: on a CPU, if they take a tenth of what is free.

    They are the same numbers either way.
    """
    if device != CPU:
        return False
    quantised = [one for one in model.modules() if type(one).__name__ == "Linear4bit"]
    bytes_in_16_bits = sum(2 * one.in_features * one.out_features for one in quantised)
    return bytes_in_16_bits <= free_memory() / 10
