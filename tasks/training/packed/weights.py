"""The trainable numbers of one member: all its A and B in one run of memory, so that an optimizer step is one call."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import nn

from tasks.training.methods import count, same_bytes_for_same_settings
from tasks.training.models import add_adapter
from tasks.training.packed.linear import Adaptation

LAYERS = 100_003  # more than a model has; keeps the dropout of seeds and layers apart


class AdapterWeights:
    """A new adapter as PEFT starts it under `seed`, taken off the model again.

    `flat` and `gradient` hold all values; `layers` are views of them by the name of the module that they adapt.
    """

    def __init__(self, model: Any, lora: Mapping[str, Any], base: Path, seed: int, dtype: torch.dtype):
        torch.manual_seed(seed)  # PEFT draws from the global random state
        adapted = add_adapter(model, lora, base)
        self.trainable, self.total = count(adapted)
        self.config = adapted.peft_config["default"]
        found: list[tuple[str, Any]] = [
            (name, one) for name, one in adapted.get_base_model().named_modules() if isinstance(one, LoraLayer)
        ]
        starts: list[torch.Tensor] = [of["default"].weight.data for _, one in found for of in (one.lora_A, one.lora_B)]
        sizes = [matrix.numel() for matrix in starts]
        self.flat = nn.Parameter(torch.empty(sum(sizes), dtype=dtype, device=starts[0].device))
        self.gradient = torch.zeros_like(self.flat)
        self.flat.grad = self.gradient
        matrices = []
        for start, values, gradient in zip(
            starts, self.flat.data.split(sizes), self.gradient.split(sizes), strict=True
        ):
            matrices.append(nn.Parameter(values.copy_(start.reshape(-1)).view(start.shape)))
            matrices[-1].grad = gradient.view(start.shape)
        self.layers: dict[str, Adaptation] = {
            name: Adaptation(
                a=matrices[2 * number],
                b=matrices[2 * number + 1],
                scaling=float(layer.scaling["default"]),
                dropout=getattr(layer.lora_dropout["default"], "p", 0.0),
                seed=seed * LAYERS + number,
            )
            for number, (name, layer) in enumerate(found)
        }
        adapted.unload()

    @property
    def has_dropout(self) -> bool:
        return any(one.dropout for one in self.layers.values())

    def save(self, output: Path, base_name: str) -> None:
        """An ordinary PEFT checkpoint: adapter_config.json, adapter_model.safetensors."""
        tensors = {
            f"base_model.model.{name}.lora_{letter}.weight": matrix.data.detach().cpu().clone()
            for name, one in self.layers.items()
            for letter, matrix in (("A", one.a), ("B", one.b))
        }
        save_file(tensors, output / "adapter_model.safetensors", metadata={"format": "pt"})
        self.config.inference_mode = True
        self.config.save_pretrained(str(output))
        same_bytes_for_same_settings(output / "adapter_config.json", base_name)
