"""Loading the base for training and evaluation, and putting an adapter on it: the same way for both."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from infra.errors import RequestError

Quantization = Literal["none", "nf4"]
COMPUTE_DTYPE = torch.bfloat16


def load_base(folder: Path, quantization: Quantization, device: str) -> Any:
    """The base in bfloat16, or in NF4 with double quantisation and bfloat16 compute (arXiv 2305.14314).

    4-bit is 4-bit on every device: bitsandbytes has CPU kernels, and a base that ends up without 4-bit layers
    is an error, not a slower 16-bit run.
    """
    options: dict[str, Any] = {}
    if quantization == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=COMPUTE_DTYPE,
            bnb_4bit_quant_storage=COMPUTE_DTYPE if device.startswith("cuda") else torch.uint8,
        )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=COMPUTE_DTYPE, device_map={"": device}, **options)
    if quantization == "nf4" and not any(type(module).__name__ == "Linear4bit" for module in model.modules()):
        raise RequestError(f"{folder}: no layer could be quantised to 4 bits; use method: lora.")
    return model


def meta_base(folder: Path) -> Any:
    """The architecture of the base on the meta device: shapes without weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))


def lora_config(lora: Mapping[str, Any]) -> LoraConfig:
    modules = lora["target_modules"]
    return LoraConfig(
        **{**lora, "target_modules": modules if isinstance(modules, str) else list(modules)}, task_type="CAUSAL_LM"
    )


def add_adapter(model: Any, lora: Mapping[str, Any]) -> Any:
    """A new, randomly initialised adapter on `model`, in float32; RequestError if no module bears a wanted name."""
    modules = lora["target_modules"]
    if modules != "all-linear":
        there = adaptable_modules(model)
        missing = sorted(set(modules) - there)
        if missing:
            raise RequestError(
                f"target_modules {', '.join(missing)} match nothing in this model; "
                f"allowed are {', '.join(sorted(there))}, or 'all-linear'."
            )
    adapted = get_peft_model(model, lora_config(lora), autocast_adapter_dtype=True)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def adaptable_modules(model: Any) -> set[str]:
    """Last names of the layers that LoRA can adapt, without the head."""
    head = model.get_output_embeddings()
    return {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
