"""What must hold of a merged model before anybody gets it; each failure is a StageError, and then nothing is kept.

The files are read again from disk and compared with the base's: what was written is not asked to vouch for itself.
"""

from collections.abc import Callable, Collection, Mapping
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
EFFECT_SHARE = 0.1  # of what the adapter does to its base (KL): an adapter added at half its scale misses 0.25
KL_NOISE = 5e-5  # nats in float32: what rounding the sum to bfloat16 may cost (0.00003 was seen on a model of 135M)
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
        one, other = base.entry(name), merged.entry(name)
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            raise StageError(f"merging made {other.dtype} {other.shape} of {name}, which was {one.dtype} {one.shape}.")
        before = base.read_bytes(name)
        if rounding.through and name in rounding.names:
            before = _bytes(rounding.through(base.read(name)))
        same = torch.equal(before, merged.read_bytes(name))
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


def reloaded(output: Path, base: Path, device: str, dtype: torch.dtype = COMPUTE_DTYPE) -> Any:
    """The merged model as transformers loads it, with as little missing or left over as in the base."""
    model, wrong = _loaded(output, device, dtype)
    if wrong:
        del model
        if news := wrong - _loaded(base, device, dtype)[1]:
            raise StageError(f"the merged model does not load as the base does: {_some(news)}.")
        model, _ = _loaded(output, device, dtype)
    return model


def _loaded(folder: Path, device: str, dtype: torch.dtype) -> tuple[Any, set[str]]:
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, device_map={"": device}, output_loading_info=True
    )
    model, info = loaded
    return model, {f"{kind.removesuffix('_keys')} {key}" for kind in WRONG_KEYS for key in info[kind]}


def check_sum(
    into: str, found: Closeness, effect: Closeness, in_float32: Callable[[], tuple[Closeness, Closeness]]
) -> dict[str, Any]:
    """The merged model answers as base + adapter does, and much more so than the base without the adapter.

    `found` is how far it is from base + adapter in bfloat16, `effect` how far the base alone is. bfloat16 by itself
    makes a few thousandths of a nat. What is above `EFFECT_SHARE` of the effect may be that noise, or a part of the
    adapter that was lost: then the same two are asked for `in_float32`, and decide. Returns what was compared.
    """
    if not found.mean_kl_nats <= KL_LIMIT:
        raise StageError(
            f"merged into {into} weights, the model does not answer like base + adapter: mean KL "
            f"{found.mean_kl_nats:.4f} nats over {found.positions} positions, allowed {KL_LIMIT}."
        )
    dtype, allowed = "bfloat16", EFFECT_SHARE * effect.mean_kl_nats
    if not found.mean_kl_nats <= allowed:
        found, effect = in_float32()
        dtype, allowed = "float32", max(EFFECT_SHARE * effect.mean_kl_nats, min(KL_NOISE, effect.mean_kl_nats / 2))
    if not found.mean_kl_nats <= allowed:
        raise StageError(
            f"merged into {into} weights, part of the adapter was lost: in {dtype} the mean KL to base + adapter is "
            f"{found.mean_kl_nats:.2g} nats, allowed {allowed:.2g}, and the base without any adapter has "
            f"{effect.mean_kl_nats:.2g}. It was added with another scale, or its update is too small for the number "
            "format of the base's weights; release the adapter itself (publish.what: [adapter])."
        )
    return {
        "compared_in": dtype,
        "kl_to_own_sum_nats": round(found.mean_kl_nats, 6),
        "kl_allowed_nats": round(min(allowed, KL_LIMIT), 6),
    }


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)  # NaN equals itself, and 0 is not -0


def _some(names: Collection[str]) -> str:
    shown = ", ".join(sorted(names)[:NAMED])
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED} more"
