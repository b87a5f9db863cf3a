"""Which trainings the packed engine takes: those in which it computes what TRL computes, row by row.

The list of architectures is the list of those that a test holds against row-by-row training. In the others something
hangs on the neighbours of a token, on where it stands in the batch, or on what the forward pass keeps beside hidden
states: sliding windows, ALiBi, recurrent layers, a mixture of experts with its auxiliary loss.
"""

from collections.abc import Mapping
from typing import Any

from tasks.recipe.schema import Adapter

ARCHITECTURES = (
    "gemma",
    "gpt2",
    "gpt_neox",
    "granite",
    "llama",
    "mistral",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
)
STARTS = (True, False, "gaussian", "orthogonal")  # of A and B; the others change the base, which a pack shares
BY_LENGTH = ("dynamic", "longrope")  # rotary embeddings that are others in a longer batch
DROPOUTS = (
    *("attn_pdrop", "resid_pdrop", "embd_pdrop", "attention_dropout", "hidden_dropout", "dropout", "ffn_dropout"),
    *("residual_dropout", "embedding_dropout"),
)
# What a config.json means that does not say it, where that is not "none".
UNSAID: dict[str, dict[str, Any]] = {
    "gpt2": {"attn_pdrop": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1},
    "mistral": {"sliding_window": 4096},
    "qwen2": {"use_sliding_window": False, "sliding_window": 4096},
    "qwen3": {"use_sliding_window": False, "sliding_window": 4096},
    "smollm3": {"use_sliding_window": False},
}


def reason_for_trl(adapter: Adapter, config: Mapping[str, Any], *, is_preference: bool) -> str | None:
    """Why this adapter is trained by TRL, though the recipe would have it packed; None if it is packed.

    `config` is the base's config.json.
    """
    assert adapter.lora and adapter.training and adapter.accelerate, "the recipe was not resolved"
    lora, training = adapter.lora, adapter.training
    if is_preference:
        return "preference pairs (DPO)"
    if adapter.method not in ("lora", "qlora"):
        return f"method: {adapter.method}"
    if adapter.accelerate.num_processes > 1:
        return f"accelerate.num_processes is {adapter.accelerate.num_processes}"
    if training.report_to:
        return f"training.report_to names {', '.join(training.report_to)}"
    if lora.use_dora:
        return "lora.use_dora"
    if lora.init_lora_weights not in STARTS:
        return f"lora.init_lora_weights: {lora.init_lora_weights}"
    return reason_of_base(config, training.max_length)


def reason_of_base(config: Mapping[str, Any], longest_row: int) -> str | None:
    """Why the base of this config.json cannot be shared among rows of up to `longest_row` tokens; None if it can."""
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        return f"the base is of type {kind}; packed are {', '.join(ARCHITECTURES)}"
    config = {**UNSAID.get(kind, {}), **config}
    if config.get("quantization_config"):
        return "the base is stored quantised"
    dropouts = [key for key in DROPOUTS if config.get(key)]
    if dropouts:
        return f"the base itself has dropout ({', '.join(f'{key}: {config[key]}' for key in dropouts)})"
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    if window and window < longest_row:
        return f"the base attends to a window of {window} tokens, and rows may have {longest_row} (training.max_length)"
    others = sorted({*(config.get("layer_types") or ())} - {"full_attention", "sliding_attention"})
    if others:
        return f"the base has layers of {', '.join(others)}"
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if (how := rope.get("rope_type", rope.get("type"))) in BY_LENGTH:
        return f"the base's rotary embeddings ({how}) depend on the longest row of a batch"
    return None
