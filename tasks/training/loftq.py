"""LoftQ's start for a 4-bit base: A and B make good what quantisation took away (arXiv 2310.08659, one iteration).

PEFT's own `replace_lora_weights_loftq` (0.21) runs on CUDA or XPU alone and leaves the adapter's scale out.
"""

from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import torch
from peft.tuners.lora import Linear4bit

from tasks.merging.weights import Weights


@torch.no_grad()
def start_from_quantisation_error(adapted: Any, base: Path) -> None:
    """Set every A (r, in) and B (out, r) so that scale * B @ A is the best rank-r part of W - dequantised(W)."""
    weights = Weights(base)
    for name, layer in adapted.named_modules():
        if not isinstance(layer, Linear4bit):
            continue
        weight_name = name.removeprefix("base_model.model.") + ".weight"
        exact = weights.read(weight_name).to(layer.weight.device, torch.float32)
        error = exact - bnb.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
        left, values, right = torch.linalg.svd(error, full_matrices=False)
        for adapter, a in layer.lora_A.items():
            rank, root = layer.r[adapter], values[: layer.r[adapter]].sqrt()
            a.weight.data = (root[:, None] * right[:rank]).contiguous()
            layer.lora_B[adapter].weight.data = (left[:, :rank] * root / layer.scaling[adapter]).contiguous()
