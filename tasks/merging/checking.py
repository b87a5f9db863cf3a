"""What must hold of a merged model before anybody gets it; each failure is a StageError, and then nothing is kept.

The files are read again from disk and compared with the base's: what was written is not asked to vouch for itself.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from infra.errors import StageError
from infra.hashing import SHORT, digest_file
from tasks.merging.measuring import Closeness
from tasks.merging.rounding import NO_ROUNDING, Rounding
from tasks.merging.weights import Weights
from tasks.training.models import COMPUTE_DTYPE

KL_LIMIT = 0.02  # nats, mean over positions: what bfloat16 rounds away, of weights and of sums, stays well below it
KL_NOISE = 0.005  # nats: below it, bfloat16 alone may be the reason (0.002 was seen on a model of 135M)
NAMED = 5  # tensors that a message names
WRONG_KEYS = ("missing_keys", "unexpected_keys", "mismatched_keys")  # of transformers' loading info


def check_files(output: Path, digests: Mapping[str, str]) -> None:
    """Every file of `output` has the SHA-256 that was computed while it was written, and there is no other file."""
    found = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    if found != set(digests):
        raise StageError(
            f"{output}: files appeared or vanished since they were written: {_some(found ^ set(digests))}."
        )
    for name, expected in digests.items():
        if (digest := digest_file(output / name)) != expected:
            raise StageError(
                f"{output / name} reads back with digest {digest[:SHORT]}, not {expected[:SHORT]} as written: the disk "
                "or another process altered it. Run again; if it recurs, write to another disk."
            )


def check_tensors(base: Weights, merged: Weights, targeted: Collection[str], rounding: Rounding = NO_ROUNDING) -> None:
    """Every targeted tensor's bytes differ from the base's as it is rounded, and every other tensor's equal them."""
    if set(base.names) != set(merged.names):
        raise StageError(f"merging lost or added tensors: {_some(set(base.names) ^ set(merged.names))}.")
    kept, altered = set(), set()
    for name in base.names:
        before, after = base.read(name), merged.read(name)
        if rounding.through and name in rounding.names:
            before = rounding.through(before)
        if (before.dtype, before.shape) != (after.dtype, after.shape):
            raise StageError(
                f"merging made {after.dtype} {tuple(after.shape)} of {name}, which was {before.dtype} "
                f"{tuple(before.shape)}."
            )
        same = torch.equal(_bytes(before), _bytes(after))
        if same and name in targeted:
            kept.add(name)
        elif not same and name not in targeted:
            altered.add(name)
    if altered:
        raise StageError(f"merging altered {len(altered)} tensors that the adapter does not target: {_some(altered)}.")
    if kept:
        raise StageError(
            f"the adapter changes nothing in {len(kept)} of the {len(targeted)} tensors that it targets: "
            f"{_some(kept)}. Its update is zero there, or too small for the number format of the base's weights. "
            "Release the adapter itself (publish.what: [adapter]), train it for longer, or leave these layers out "
            "(lora.exclude_modules)."
        )


def reloaded(output: Path, base: Path, device: str) -> Any:
    """The merged model as transformers loads it, with as little missing or left over as in the base."""
    model, wrong = _loaded(output, device)
    if wrong:
        del model
        if news := wrong - _loaded(base, device)[1]:
            raise StageError(f"the merged model does not load as the base does: {_some(news)}.")
        model, _ = _loaded(output, device)
    return model


def _loaded(folder: Path, device: str) -> tuple[Any, set[str]]:
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=COMPUTE_DTYPE, device_map={"": device}, output_loading_info=True
    )
    model, info = loaded
    return model, {f"{kind.removesuffix('_keys')} {key}" for kind in WRONG_KEYS for key in info[kind]}


def check_sum(into: str, found: Closeness, effect: Closeness) -> None:
    """The merged model answers as base + adapter does in the same precision, and more so than the base alone."""
    kl = found.mean_kl_nats
    if not kl <= KL_LIMIT:
        raise StageError(
            f"merged into {into} weights, the model does not answer like base + adapter: mean KL {kl:.4f} nats over "
            f"{found.positions} positions, allowed {KL_LIMIT}."
        )
    if kl > KL_NOISE and kl >= effect.mean_kl_nats:
        raise StageError(
            f"merged into {into} weights, the model is further from base + adapter (mean KL {kl:.4f} nats) than the "
            f"base without any adapter ({effect.mean_kl_nats:.4f}): the adapter was lost, or added with another scale."
        )


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)  # NaN equals itself, and 0 is not -0


def _some(names: Collection[str]) -> str:
    shown = ", ".join(sorted(names)[:NAMED])
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED} more"
