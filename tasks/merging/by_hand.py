"""Merging one or several adapters of one base because somebody asks for it: no recipe, no data, no verdict.

    adapters -> their deltas -> one delta a tensor -> streamed into the base's 16-bit weights -> checked

What can be checked without data is checked: files, bytes, loading, some tensors against PEFT's own sums, that the
answers are numbers, and of one whole adapter that they are those of base + adapter. How good they are nobody has
judged, and merge.json beside the weights says so, and what was merged.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

from infra.errors import StageError
from infra.hashing import digest_file, digest_tree
from tasks.merging.against_peft import check_against_peft
from tasks.merging.checking import check_files, check_sum, check_tensors, reloaded
from tasks.merging.combining import Method, combine
from tasks.merging.deltas import read_deltas
from tasks.merging.measuring import answers, closeness, unmerged
from tasks.merging.merge import compared_in_float32
from tasks.merging.rounding import NO_ROUNDING
from tasks.merging.streaming import write_merged
from tasks.merging.weights import Weights

NOTE = "merge.json"
ASKED = 16  # tokens of the one text that the model is asked


def merge_by_hand(
    base: Path, adapters: list[Path], output: Path, *, by: Method, weights: list[float], density: float, seed: int
) -> dict[str, Any]:
    """Leave the merged model in the empty folder `output`; return what merge.json says of it."""
    stored = Weights(base)
    deltas = [read_deltas(adapter, stored) for adapter in adapters]
    whole = len(deltas) == 1 and weights == [1]
    combined = partial(combine, weights=weights, method=by, density=density, seed=seed)
    merged = deltas[0] if whole else combined(deltas)
    said = write_merged(base, merged, output)
    check_files(output, said["files"])
    check_tensors(stored, Weights(output), merged.keys())
    check_against_peft(stored, Weights(output), adapters, deltas, combined)
    texts = [torch.arange(min(ASKED, stored_vocabulary(base))).unsqueeze(0)]
    found = answers(reloaded(output, base, "cpu"), texts)
    if not all(logits.isfinite().all() for logits in found):
        raise StageError(
            "the merged model gives logits that are not numbers (NaN or infinite); one of the adapters may have "
            "diverged, or --weights are too large."
        )
    if whole:
        sum_of_both = unmerged(base, adapters[0], texts, "none", "cpu")
        exactly = partial(compared_in_float32, base, adapters[0], output, texts, NO_ROUNDING, "cpu")
        check_sum("16-bit", closeness(sum_of_both.logits, found), sum_of_both.effect, exactly)
    note = {
        "base": str(base),
        "adapters": [
            {"folder": str(adapter), "digest": _digest(adapter), "trained_on": _trained_on(adapter), "weight": weight}
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


def _trained_on(adapter: Path) -> str | None:
    """The base that the adapter names, which need not be the one that was given."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    return config.get("base_model_name_or_path")  # type: ignore[no-any-return]


def _digest(adapter: Path) -> str:
    """SHA-256 over the two files that make the adapter."""
    names = ("adapter_config.json", "adapter_model.safetensors")
    return digest_tree({name: digest_file(adapter / name) for name in names})
