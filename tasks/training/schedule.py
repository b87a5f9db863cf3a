"""How many optimizer steps a job takes: the same number before, during and after training."""

import math
from collections.abc import Mapping
from typing import Any


def steps_per_epoch(rows: int, training: Mapping[str, Any], processes: int = 1) -> int:
    """Optimizer steps of one pass over `rows` training rows, as transformers' Trainer counts them."""
    batches = math.ceil(rows / (training["per_device_train_batch_size"] * processes))
    return max(math.ceil(batches / training["gradient_accumulation_steps"]), 1)


def steps_of(rows: int, training: Mapping[str, Any], processes: int = 1) -> int:
    """Optimizer steps of the whole job; early stopping may end it before."""
    if training["max_steps"]:
        return training["max_steps"]
    return math.ceil(training["num_train_epochs"] * steps_per_epoch(rows, training, processes))


def epochs_of(rows: int, training: Mapping[str, Any], processes: int = 1) -> float:
    """How often each of `rows` training rows is seen."""
    if not training["max_steps"]:
        return float(training["num_train_epochs"])
    rows_a_step = training["per_device_train_batch_size"] * training["gradient_accumulation_steps"] * processes
    return float(training["max_steps"] * rows_a_step / rows)


def in_steps(every: float, total: int) -> int:
    """An interval in steps: below 1 it is a fraction of all."""
    return max(round(every * total), 1) if every < 1 else int(every)
