"""What a pack has memory for: activations of all its rows, and a base kept as 16 bits where it is stored in 4."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from infra.device_memory import MARGIN, free_memory
from infra.gpus import CPU
from tasks.training.features import Features, length
from tasks.training.memory import estimate
from tasks.training.models import add_adapter, meta_base
from tasks.training.sharing import bytes_together


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
    return without > (1 - MARGIN) * free and needed(job, longest, checkpointing=True) < without


def needed(job: Mapping[str, Any], longest_rows: Mapping[str, int], *, checkpointing: bool) -> int:
    """Bytes of the pack's process."""
    estimates = [
        estimate(
            add_adapter(meta_base(Path(job["base"])), one["lora"]),
            method=one["method"],
            training=one["training"],
            longest_row=longest_rows[one["name"]],
            gradient_checkpointing=checkpointing,
            device="cpu" if job["device"] == CPU else "cuda",
        )
        for one in job["members"]
    ]
    return bytes_together([(one.total, one.shared) for one in estimates])


def keeps_dequantised(model: Any, device: str) -> bool:
    """Whether the weights that 4 bits stand for are made once for good: on a CPU, if they take a tenth of what is free.

    They are the same numbers either way.
    """
    if device != CPU:
        return False
    quantised = [one for one in model.modules() if type(one).__name__ == "Linear4bit"]
    bytes_in_16_bits = sum(2 * one.in_features * one.out_features for one in quantised)
    return bytes_in_16_bits <= free_memory() / 10
