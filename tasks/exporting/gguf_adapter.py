"""A PEFT LoRA adapter as a GGUF that llama.cpp lays over a model (`--lora`).

llama.cpp computes W + alpha / r * B @ A with one alpha for the file and r of each pair. PEFT may scale each module by
itself (alpha_pattern, rank_pattern, rsLoRA: alpha / sqrt(r), arXiv 2312.03732); what differs is folded into B.
B may be so small that f16 would round it to nothing, so A and B are brought to one size first, by a power of two, which
is exact. What an adapter does to each tensor is read as merging reads it, so what cannot be merged cannot be exported.
"""

import json
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

from infra.errors import Fault, RequestError
from tasks.exporting.architecture import Architecture, architecture_of
from tasks.exporting.gguf_model import check_tensors, write_tensors
from tasks.exporting.weights import open_weights
from tasks.merging.deltas import Delta, LowRank, read_deltas

LOST = 0.01  # of a tensor's norm; sound numbers lose 0.0003 in f16


def write_adapter(adapter: Path, base: Path, file: Path) -> dict[str, Any]:
    """Write the adapter in the folder `adapter`, trained on the model in `base`, to `file` in f16, and check it.

    RequestError for what a GGUF adapter cannot say; StageError if the file is not what was written.
    """
    from transformers import AutoConfig

    architecture = architecture_of(AutoConfig.from_pretrained(base))
    pairs = _pairs(read_deltas(adapter, open_weights(base)), architecture)
    alpha = float(json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["lora_alpha"])
    alpha = alpha or 1.0  # llama.cpp reads 0 as "unscaled"; the pairs' own scales are folded in below
    tensors: dict[str, np.ndarray] = {}
    for name, pair in pairs.items():
        a, b = pair.right.numpy(), pair.left.numpy()  # (r, in), (out, r)
        a, b = balanced(a, b * np.float32(pair.scale * len(a) / alpha))
        tensors[f"{name}.lora_a"] = a
        tensors[f"{name}.lora_b"] = architecture.arranged(name, b)
    if faults := [fault for name, values in tensors.items() for fault in _unfit(name, values)]:
        raise RequestError(faults)
    shapes = [(name, values.shape, GGMLQuantizationType.F16) for name, values in tensors.items()]

    writer = GGUFWriter(file, architecture.name)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    write_tensors(writer, iter(shapes), iter(tensors.values()))
    check_tensors(GGUFReader(file), shapes, iter(tensors.values()))
    return {"bytes": file.stat().st_size, "tensors": len(tensors)}


def balanced(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 (r, in) and (out, r) of the same product, and their largest numbers at most a factor of two apart."""
    largest = [float(np.abs(values).max()) for values in (a, b)]
    if not all(0 < one < np.inf for one in largest):  # an untrained B, or one that is refused
        return a, b
    shift = round((log2(largest[1]) - log2(largest[0])) / 2)
    return np.ldexp(a, shift), np.ldexp(b, -shift)


def _unfit(name: str, values: np.ndarray) -> list[Fault]:
    """What f16 would make of the numbers, where that is something else."""
    with np.errstate(over="ignore", invalid="ignore"):
        lost = _norm(values - values.astype(np.float16)) / (_norm(values) or 1.0)
    if lost <= LOST:
        return []
    what = "are not all finite" if not np.isfinite(values).all() else f"reach {np.abs(values).max():g}"
    return [
        Fault(
            f"{name}: its numbers {what}, which f16 cannot hold, and an adapter's GGUF has nothing wider here; merge "
            "the adapter (tunefleet merge) and export the model."
        )
    ]


def _norm(values: np.ndarray) -> float:
    return float(np.linalg.norm(values.astype(np.float64)))  # squares of small numbers are 0 in float32


def _pairs(deltas: dict[str, Delta], architecture: Architecture) -> dict[str, LowRank]:
    """{weight in llama.cpp: A and B}; RequestError names every change of the adapter that is no such pair."""
    pairs: dict[str, LowRank] = {}
    faults = []
    for tensor, delta in deltas.items():
        name = architecture.gguf_name(tensor)
        if not isinstance(delta, LowRank):
            faults.append(Fault(f"{tensor} has its own values in the adapter; a GGUF adapter holds only pairs A, B."))
        elif delta.magnitude is not None:
            faults.append(Fault(f"{tensor} has a magnitude (use_dora); a GGUF adapter holds only pairs A, B."))
        elif name is None:
            faults.append(architecture.unnamed(tensor))
        elif name == "token_embd.weight":
            faults.append(Fault(f"{tensor} is changed by the adapter; only linear layers can be said here."))
        else:
            pairs[name] = delta
    if faults:
        raise RequestError(faults)
    return pairs
