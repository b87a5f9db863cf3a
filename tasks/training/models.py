"""Loading the base for training and evaluation, and putting an adapter on it: the same way for both."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from infra.errors import RequestError
from tasks.training.loftq import start_from_quantisation_error

Quantization = Literal["none", "nf4"]
COMPUTE_DTYPE = torch.bfloat16


def load_base(folder: Path, quantization: Quantization, device: str, dtype: torch.dtype = COMPUTE_DTYPE) -> Any:
    """The base in `dtype`, or in NF4 with double quantisation and bfloat16 compute (arXiv 2305.14314).

    4-bit is 4-bit on every device: bitsandbytes has CPU kernels, and a base that ends up without 4-bit layers
    is an error, not a slower 16-bit run.
    """
    options: dict[str, Any] = {"quantization_config": nf4_config(device)} if quantization == "nf4" else {}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map={"": device}, **options)
    if quantization == "nf4" and not any(type(module).__name__ == "Linear4bit" for module in model.modules()):
        raise RequestError(f"{folder}: no layer could be quantised to 4 bits; use method: lora.")
    return model


def nf4_config(device: str) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=COMPUTE_DTYPE,
        bnb_4bit_quant_storage=COMPUTE_DTYPE if device.startswith("cuda") else torch.uint8,
    )


def meta_base(folder: Path) -> Any:
    """The architecture of the base on the meta device: shapes without weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))


def lora_config(lora: Mapping[str, Any]) -> LoraConfig:
    """PEFT's configuration; keys that are null are left to PEFT."""
    given: dict[str, Any] = {
        key: list(value) if isinstance(value, tuple) else value for key, value in lora.items() if value is not None
    }
    return LoraConfig(**{**given, "task_type": "CAUSAL_LM"})


def add_adapter(model: Any, lora: Mapping[str, Any], base: Path | None = None) -> Any:
    """A new adapter on `model`, in float32; RequestError if no module bears a wanted name.

    `base` is the folder of the 16-bit weights, which LoftQ compares the 4-bit ones with. On the meta device, where
    there is nothing to decompose, adapters start the plain way: their shapes are the same.
    """
    _check_targets(model, lora)
    start = lora["init_lora_weights"]
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    plain = {**lora, "init_lora_weights": True} if on_meta or start == "loftq" else lora
    adapted = get_peft_model(model, lora_config(plain), autocast_adapter_dtype=True)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if start == "loftq" and not on_meta:
        assert base, "LoftQ needs the 16-bit weights"
        start_from_quantisation_error(adapted, base)
    return adapted


def changes_the_base(lora: Mapping[str, Any]) -> bool:
    """Whether this start moves part of the base's weights into A and B, so that they must be moved back at the end."""
    return str(lora["init_lora_weights"]).startswith(("pissa", "olora"))


def adaptable_modules(model: Any) -> set[str]:
    """Last names of the layers that LoRA can adapt, without the head."""
    head = model.get_output_embeddings()
    return {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }


def _check_targets(model: Any, lora: Mapping[str, Any]) -> None:
    modules, there = lora["target_modules"], adaptable_modules(model)
    allowed = f"allowed are {', '.join(sorted(there))}, or 'all-linear'."
    if modules is None:
        if model.config.model_type not in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING:
            raise RequestError(f"PEFT has no target_modules of its own for {model.config.model_type}; {allowed}")
    elif modules != "all-linear":
        missing = sorted(set(modules) - there)
        if missing:
            raise RequestError(f"target_modules {', '.join(missing)} match nothing in this model; {allowed}")
    excluded = set(lora["exclude_modules"] or ())
    if unknown := sorted(excluded - there):
        raise RequestError(f"exclude_modules {', '.join(unknown)} match nothing in this model; {allowed}")
    if excluded and modules is not None and not (there if modules == "all-linear" else set(modules)) - excluded:
        raise RequestError(f"exclude_modules leaves nothing of target_modules {modules}; {allowed}")
    layers = lora["layers_to_transform"]
    count = getattr(model.config, "num_hidden_layers", None)
    if layers and count and max(layers) >= count:
        raise RequestError(f"layers_to_transform names layer {max(layers)}; this model has layers 0 to {count - 1}.")
