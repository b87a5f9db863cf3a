"""How long training will take: from what earlier runs measured, else a rough guess from this machine's speed."""

import time
from dataclasses import dataclass

from infra.storage import Store

LOOKED_AT = 200  # manifests of earlier results
FORWARD, BACKWARD = 2, 2  # floating-point operations per parameter and token; backward through activations alone
GRADIENTS = 2  # and for the weights' own gradients, which only a full fine-tuning computes
RECOMPUTED = 2  # the second forward pass of gradient checkpointing
MEASURE_SECONDS = 0.3


@dataclass(frozen=True)
class Speed:
    tokens_per_second: float
    source: str  # "measured in run ...", or that it is a guess


def measured_speed(store: Store, *, base: str, method: str, device: str, processes: int) -> Speed | None:
    """Of the newest training in `store` on the same base (digest), by the same method, on the same kind of device."""
    newest: tuple[str, Speed] | None = None
    for kind in ("models",) if method == "full" else ("adapters",):
        try:
            folders = store.fs.ls(f"{store.root}/{kind}", detail=False)[:LOOKED_AT]
        except FileNotFoundError:
            continue
        for folder in folders:
            manifest = store.read_json(f"{kind}/{folder.rstrip('/').rpartition('/')[2]}/manifest.json") or {}
            facts = manifest.get("facts", {})
            same = (
                manifest.get("upstream", {}).get("base") == base
                and manifest.get("spec", {}).get("method") == method
                and str(facts.get("device", "")).partition(":")[0] == device
                and facts.get("world_size", 1) == processes
            )
            if same and facts.get("tokens") and facts.get("seconds"):
                speed = Speed(facts["tokens"] / facts["seconds"], f"measured in run {manifest['run_id']}")
                newest = max(newest or ("", speed), (manifest["created"], speed), key=lambda one: one[0])
    return newest[1] if newest else None


def guessed_speed(*, parameters: int, full: bool, checkpointing: bool, flops: float) -> Speed:
    """As if training ran at the speed of a lone matrix product; the 4-bit demo on a CPU takes three times as long."""
    per_token = (FORWARD + BACKWARD + GRADIENTS * full + RECOMPUTED * checkpointing) * parameters
    return Speed(flops / per_token, "a rough guess from the speed of a matrix product here, likely too short")


def matmul_flops(device: str, hidden: int, tokens: int) -> float:
    """Floating-point operations per second of products in the model's width, in bfloat16, over 0.3 seconds."""
    import torch

    where = "cuda:0" if device == "cuda" else "cpu"
    rows = max(min(tokens, 2048), 16)
    left = torch.ones(rows, hidden, dtype=torch.bfloat16, device=where)
    right = torch.ones(hidden, 4 * hidden, dtype=torch.bfloat16, device=where)

    def product() -> None:
        torch.mm(left, right)
        if where != "cpu":
            torch.cuda.synchronize()

    product()  # the first one sets things up
    count, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < MEASURE_SECONDS:
        product()
        count += 1
    return 2 * rows * hidden * 4 * hidden * count / elapsed
