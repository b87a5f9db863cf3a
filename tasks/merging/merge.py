"""Merging one adapter into its base: which weights it is added to, and how it is shown that the sum is right.

    base, adapter -> deltas -> a candidate on disk -> checked -> measured against the judged adapter -> the closest

Of a LoRA adapter there is one candidate: its update added to the base's own weights. A QLoRA adapter learned beside
weights rounded to 4 bits, so there are two. "16-bit" adds its update to the weights before they were rounded: they
are the better ones, but not those that it was judged on. "4-bit" adds it to the rounded ones, written with 16 bits
again. The sum itself is never rounded to 4 bits, which can erase a light fine-tune. Which candidate answers more like
the adapter that was judged is measured, not believed.

One candidate lies on disk and one model in memory at a time.
"""

import shutil
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoTokenizer

from infra.errors import RequestError, StageError
from tasks.merging.checking import check_files, check_sum, check_tensors, reloaded
from tasks.merging.deltas import Delta, read_deltas
from tasks.merging.measuring import Closeness, answers, closeness, read_texts, unmerged, unmerged_in_float32
from tasks.merging.rounding import NO_ROUNDING, Rounding, rounding_of
from tasks.merging.streaming import write_merged
from tasks.merging.weights import Weights
from tasks.training.models import Quantization

Into = Literal["closest", "16-bit", "4-bit"]
CANDIDATES = {"none": ("16-bit",), "nf4": ("16-bit", "4-bit")}  # by the precision of the base that was judged


def merge(
    base: Path, adapter: Path, data: Path, output: Path, *, quantization: Quantization, into: Into, device: str
) -> dict[str, Any]:
    """Leave the merged model and its tokenizer in the empty folder `output`; return what was made and measured.

    RequestError if `into` is nothing that an adapter of this base can be merged into. StageError if a check fails.
    Whatever is raised, `output` is empty again.
    """
    candidates = CANDIDATES[quantization] if into == "closest" else (into,)
    if not set(candidates) <= set(CANDIDATES[quantization]):
        raise RequestError(
            f"publish.merge.into is {into}, but this adapter's base was not rounded to 4 bits (method: qlora does "
            "that); allowed are 16-bit and closest."
        )
    weights = Weights(base)
    deltas = read_deltas(adapter, weights)
    texts = read_texts(AutoTokenizer.from_pretrained(base), data)
    judged = unmerged(base, adapter, texts, quantization, device)
    sums = dict.fromkeys(candidates, judged)  # what each must answer like, in its own precision
    if quantization == "nf4" and "16-bit" in sums:
        sums["16-bit"] = unmerged(base, adapter, texts, "none", device)
    roundings = {one: rounding_of(base, weights, device) if one == "4-bit" else NO_ROUNDING for one in candidates}
    made: dict[str, dict[str, Any]] = {}
    measured: dict[str, dict[str, Any]] = {}
    try:
        for one in candidates:
            made[one] = _make(base, weights, deltas, output, roundings[one])
            found = answers(reloaded(output, base, device), texts)
            exactly = partial(compared_in_float32, base, adapter, output, texts, roundings[one], device)
            own = check_sum(one, closeness(sums[one].logits, found), sums[one].effect, exactly)
            measured[one] = closeness(judged.logits, found).figures() | own
        best = min(candidates, key=lambda one: measured[one]["mean_kl_nats"])
        if best != candidates[-1]:  # it gave way to the one that lies there now
            again = _make(base, weights, deltas, output, roundings[best])
            if again["files"] != made[best]["files"]:
                raise StageError(f"merged into {best} weights twice, the files differ; what was checked is gone.")
    except BaseException:
        _empty(output)
        raise
    return {
        "into": best,
        "asked": into,
        "dtype": _dtype(weights, deltas),
        "measured": measured,
        **{key: measured[best][key] for key in ("mean_kl_nats", "top1_agreement")},
        "adapter_kl_nats": judged.effect.figures()["mean_kl_nats"],
        "checked_rows": len(texts),
        "tensors_targeted": len(deltas),
        "tensors_changed": made[best]["tensors_changed"],
        "tensors_copied": made[best]["tensors_copied"],
    }


def compared_in_float32(
    base: Path, adapter: Path, output: Path, texts: list[torch.Tensor], rounding: Rounding, device: str
) -> tuple[Closeness, Closeness]:
    """How far the merged model and the base without any adapter are from base + adapter, computed in float32."""
    exact = unmerged_in_float32(base, adapter, texts, rounding, device)
    return closeness(exact.logits, answers(reloaded(output, base, device, torch.float32), texts)), exact.effect


def _make(base: Path, weights: Weights, deltas: dict[str, Delta], output: Path, rounding: Rounding) -> dict[str, Any]:
    """Write a candidate in place of any other, and hold it against the base, byte by byte; what the writer said."""
    _empty(output)
    said = write_merged(base, deltas, output, rounded=rounding.names, through=rounding.through)
    check_files(output, said["files"])
    check_tensors(weights, Weights(output), deltas.keys(), rounding)
    return said


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _dtype(weights: Weights, deltas: dict[str, Delta]) -> str:
    """Of the tensors that were changed, as safetensors spells it: BF16, or BF16 and F32."""
    return " and ".join(sorted({weights.entry(name).dtype for name in deltas}))
