"""What trains under each method, and what it leaves: an adapter on the base in 16 or 4 bits, or the whole model.

lora   bfloat16 base, float32 adapter        adapter_config.json, adapter_model.safetensors
qlora  NF4 base, float32 adapter             the same
full   every weight, in float32              config.json, model.safetensors in the base's own dtype, tokenizer
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from infra.errors import DivergedError, RequestError, StageError
from tasks.training.models import Quantization, add_adapter, changes_the_base, load_base

QUANTIZATION: dict[str, Quantization] = {"lora": "none", "qlora": "nf4", "full": "none"}
NOT_WEIGHTS = ("model*.safetensors*", "config.json", "generation_config.json", "manifest.json")


def trainable(method: str, base: Path, lora: Mapping[str, Any], device: str, work: Path) -> Any:
    """The model to train; RequestError if nothing in it would train."""
    if method == "full":
        model = load_base(base, "none", device, dtype=torch.float32)
    else:
        loaded = load_base(base, QUANTIZATION[method], device)
        keep_unpacked(loaded)
        model = add_adapter(loaded, lora, base)
        if changes_the_base(lora) and os.environ.get("RANK", "0") == "0":
            model.save_pretrained(_start_folder(work))
    model.config.use_cache = False
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise RequestError("no parameter of this model would be trained; look at target_modules.")
    return model


def keep_unpacked(model: Any) -> None:
    """Keep bitsandbytes from repacking 4-bit weights for inference on a CPU: the matmul then has no gradient.

    It does so at the first forward in eval mode, such as a validation loss in the middle of training (seen in 0.50.2).
    """
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.support_avx512bf16_for_cpu = False


def count(model: Any) -> tuple[int, int]:
    """(trainable, all) parameters; 4-bit weights count as the weights they stand for."""
    if hasattr(model, "get_nb_trainable_parameters"):
        return model.get_nb_trainable_parameters()
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)


def fingerprint(model: Any) -> dict[str, tuple[float, float]]:
    """{parameter: two sums over it}, of those that train: enough to see whether it moved, without a copy."""
    return {
        name: (float(parameter.detach().double().sum()), float(parameter.detach().double().abs().sum()))
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def refuse_untrained(model: Any, before: Mapping[str, tuple[float, float]]) -> None:
    """DivergedError for weights that are not finite, StageError if none of them ever moved."""
    after = fingerprint(model)
    for name, sums in after.items():
        if not all(map(torch.isfinite, map(torch.tensor, sums))):
            raise DivergedError(f"after training, {name} is not finite.")
    if after == dict(before):
        raise StageError("training moved no weight; is learning_rate too small?")


def save(
    trainer: Any, method: str, lora: Mapping[str, Any], output: Path, base: Path, base_name: str, work: Path
) -> None:
    """Write the result from the first process; all must call it, since a model may be spread over them."""
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not trainer.is_world_process_zero():
        return
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    if method == "full":
        dtype = AutoConfig.from_pretrained(base).dtype or torch.bfloat16
        model.config.use_cache = True
        tied = getattr(model, "all_tied_weights_keys", {})  # stored once, under the name of what they are tied to
        model.save_pretrained(
            output, state_dict={name: tensor.to(dtype) for name, tensor in state.items() if name not in tied}
        )
        config = json.loads((output / "config.json").read_text())  # it names the float32 of training
        (output / "config.json").write_text(
            json.dumps({**config, "dtype": str(dtype).removeprefix("torch.")}, indent=2)
        )
        for path in base.iterdir():  # the tokenizer and its template, byte for byte
            if path.is_file() and not any(path.match(pattern) for pattern in NOT_WEIGHTS):
                shutil.copyfile(path, output / path.name)
        return
    if changes_the_base(
        lora
    ):  # PEFT takes the start from what was learned: an adapter of rank 2r on the base as it was
        start = str(_start_folder(work))
        model.save_pretrained(output, selected_adapters=["default"], path_initial_model_for_weight_conversion=start)
    else:  # beside "default" there is DPO's reference
        model.save_pretrained(output, selected_adapters=["default"], state_dict=state)
    (output / "README.md").unlink(missing_ok=True)  # a card is written at publishing, when there is something to say
    same_bytes_for_same_settings(output / "adapter_config.json", base_name)


def _start_folder(work: Path) -> Path:
    return work / "start"


def same_bytes_for_same_settings(path: Path, base_name: str) -> None:
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = base_name
    for key in ("target_modules", "exclude_modules"):
        if isinstance(config.get(key), list):
            config[key].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
