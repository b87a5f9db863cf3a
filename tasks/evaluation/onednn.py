"""Linear layers in float32 on a CPU, through oneDNN.

PyTorch hands bfloat16 to oneDNN, but float32 to MKL, whose kernels leave half of an AMD processor unused: 92 against
208 GFLOP/s on one core of an EPYC with AVX-512 (256 x 576 times 576 x 1536, torch 2.13). Both compute in float32.
"""

from functools import partial
from typing import Any

import torch
from torch import nn


def through_onednn(model: Any) -> None:
    """Let the float32 linear layers of a model on a CPU compute with oneDNN, for inference only."""
    if model.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return
    linear: list[Any] = [module for module in model.modules() if type(module) is nn.Linear]
    for module in linear:
        if module.weight.dtype == torch.float32:
            module.forward = partial(_linear, module)


def _linear(module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    if torch.is_grad_enabled() or x.dtype != torch.float32:
        return nn.functional.linear(x, module.weight, module.bias)
    return torch.ops.mkldnn._linear_pointwise(x, module.weight, module.bias, "none", [], "")
