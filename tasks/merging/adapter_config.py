"""What adapter_config.json says, if it asks for nothing that merging does not do.

PEFT ignores keys that it does not know, with a warning. A merge must not: each may change what the adapter computes.
"""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from peft import LoraConfig

from infra.errors import Fault, RequestError

_UNSUPPORTED = ("layer_replication", "target_parameters", "trainable_token_indices", "use_qalora", "megatron_config")
_STARTS_IN_THE_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq", "mica")  # init_lora_weights that move the base


def read_config(adapter: Path) -> LoraConfig:
    """RequestError if adapter_config.json asks for anything that is not merged here."""
    path = adapter / "adapter_config.json"
    try:
        said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind = said.get("peft_type")
    except (OSError, ValueError, AttributeError) as error:
        raise RequestError(f"{path}: {error}. Give the folder that PEFT's save_pretrained wrote.") from error
    if kind != "LORA":
        raise RequestError(f"{path}: peft_type is {kind}; only LORA can be merged.")
    known = {field.name: field for field in fields(LoraConfig)}
    faults = [
        Fault(f"{key} is {value!r}, which cannot be merged; release the adapter itself", str(path))
        for key, value in said.items()
        if value and _is_foreign(key, known)
    ]
    if str(start := said.get("init_lora_weights")).startswith(_STARTS_IN_THE_BASE):
        faults.append(
            Fault(
                f"init_lora_weights is {start!r}: its base is not the one that was downloaded. Save the adapter with "
                "path_initial_model_for_weight_conversion",
                str(path),
            )
        )
    if faults:
        raise RequestError(faults)
    return LoraConfig(**{key: value for key, value in said.items() if key in known})


def _is_foreign(key: str, known: dict[str, Any]) -> bool:
    if key == "use_dora":
        return False
    return key not in known or key in _UNSUPPORTED or bool(known[key].metadata.get("is_lora_variant"))
