"""How many optimizer steps a job takes: the same number before, during and after training."""

import math
from typing import Any


def steps_of(rows: int, training: dict[str, Any]) -> int:
    """Optimizer steps for `rows` training rows on one process, as transformers' Trainer counts them."""
    if training["max_steps"]:
        return training["max_steps"]
    batches = math.ceil(rows / training["per_device_train_batch_size"])
    per_epoch = max(math.ceil(batches / training["gradient_accumulation_steps"]), 1)
    return math.ceil(training["num_train_epochs"] * per_epoch)
