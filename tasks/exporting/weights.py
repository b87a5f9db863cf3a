"""Reading a tensor as numbers to export: float32, one at a time, from 16-bit or 32-bit floats only."""

from pathlib import Path

import numpy as np
import torch

from infra.errors import Fault, RequestError
from tasks.merging.weights import Weights

READABLE = ("F32", "F16", "BF16")


def open_weights(folder: Path) -> Weights:
    """The tensors of `model.safetensors` or its shards; RequestError names those that hold other numbers."""
    weights = Weights(folder)
    faults = [
        Fault(f"{name} is {kind}; allowed are {', '.join(READABLE)}: export the weights from before they were rounded.")
        for name in weights.names
        if (kind := weights.entry(name).dtype) not in READABLE
    ]
    if faults:
        raise RequestError(faults)
    return weights


def read_float32(weights: Weights, name: str) -> np.ndarray:
    values: np.ndarray = weights.read(name).to(torch.float32).numpy()
    return values
