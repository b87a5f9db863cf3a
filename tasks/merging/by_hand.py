"""Merging one or several adapters of one base because somebody asks for it: no recipe, no data, no verdict.

    adapters -> their deltas -> one delta a tensor -> streamed into the base's 16-bit weights -> checked

What can be checked without data is checked: files, bytes, loading, and that the answers are numbers. How good they
are nobody has judged, and merge.json beside the weights says so, and what was merged.
"""

import json
from pathlib import Path
from typing import Any

import torch

from infra.errors import StageError
from infra.hashing import digest_file, digest_tree
from tasks.merging.checking import check_files, check_tensors, reloaded
from tasks.merging.combining import Method, combine
from tasks.merging.deltas import read_deltas
from tasks.merging.measuring import answers
from tasks.merging.streaming import write_merged
from tasks.merging.weights import Weights

NOTE = "merge.json"


def merge_by_hand(
    base: Path, adapters: list[Path], output: Path, *, by: Method, weights: list[float], density: float, seed: int
) -> dict[str, Any]:
    """Leave the merged model in the empty folder `output`; return what merge.json says of it."""
    stored = Weights(base)
    deltas = [read_deltas(adapter, stored) for adapter in adapters]
    merged = deltas[0]
    if len(deltas) > 1 or weights != [1]:
        merged = combine(deltas, weights=weights, method=by, density=density, seed=seed)
    said = write_merged(base, merged, output)
    check_files(output, said["files"])
    check_tensors(stored, Weights(output), merged.keys())
    ids = torch.arange(min(16, stored_vocabulary(base))).unsqueeze(0)
    if not all(logits.isfinite().all() for logits in answers(reloaded(output, base, "cpu"), [ids])):
        raise StageError(
            "the merged model gives logits that are not numbers (NaN or infinite); one of the adapters may have "
            "diverged, or --weights are too large."
        )
    note = {
        "base": str(base),
        "adapters": [
            {"folder": str(adapter), "digest": _digest(adapter), "weight": weight}
            for adapter, weight in zip(adapters, weights, strict=True)
        ],
        "by": by,
        "density": density if by != "linear" else None,
        "seed": seed if by == "dare" else None,
        "tensors_changed": said["tensors_changed"],
        "tensors_copied": said["tensors_copied"],
        "verdict": None,
    }
    (output / NOTE).write_text(json.dumps(note, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return note


def stored_vocabulary(base: Path) -> int:
    """Number of tokens that the base's configuration states, whose first ones any model can be asked."""
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    return int(config.get("vocab_size") or config["text_config"]["vocab_size"])


def _digest(adapter: Path) -> str:
    """SHA-256 over the two files that make the adapter."""
    names = ("adapter_config.json", "adapter_model.safetensors")
    return digest_tree({name: digest_file(adapter / name) for name in names})
