"""A model damaged on purpose, which every gate that is worth its name must stop."""

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

RANK = 8
PROBES = 64  # random inputs that a layer's norm is estimated from


@torch.no_grad()
def noised(model: Any, seed: int, strength: float) -> Any:
    """`model` under a LoRA adapter of random numbers on every linear layer but the head.

    Each layer's update has `strength` times the Frobenius norm of the layer's weight. The same seed gives the same
    adapter on every device.
    """
    adapted = get_peft_model(model, LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM"))
    random = torch.Generator().manual_seed(seed)
    for layer in adapted.modules():
        if isinstance(layer, LoraLayer):
            down: Any = layer.lora_A["default"].weight  # (r, in)
            up: Any = layer.lora_B["default"].weight  # (out, r)
            for weight in (down, up):
                weight.copy_(torch.randn(weight.shape, generator=random))
            update = (
                layer.scaling["default"] * ((up.T @ up) * (down @ down.T)).sum().sqrt()
            )  # norm of scaling * up @ down
            up.mul_(strength * _norm(layer.get_base_layer(), down.shape[1]) / update)
    return adapted


def _norm(layer: nn.Module, inputs: int) -> torch.Tensor:
    """Frobenius norm of a layer's weight W, of which it may hold 4 bits: E ||W x||^2 over x ~ N(0, 1) is its square."""
    weight: Any = layer.weight
    dtype = weight.dtype if weight.dtype.is_floating_point else torch.float32
    x = torch.randn(PROBES, inputs, generator=torch.Generator().manual_seed(0)).to(weight.device, dtype)
    return (layer(x) - layer(torch.zeros_like(x))).float().square().sum(-1).mean().sqrt()
