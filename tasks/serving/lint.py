"""What vLLM would not serve, said before its server is started: there it is an error minutes later, or none at all.

Read in the source of vLLM 0.33.0: vllm/lora/peft_helper.py (settings), vllm/lora/utils.py and lora_model.py (names of
tensors), vllm/config/lora.py (ranks), and model_executor/models (which architectures take LoRA, and where). It looks at
adapter_config.json and the header of the safetensors file, and loads no weights.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

VLLM = "0.33.0"
MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank allows
PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")  # others may have moved weights out of the base
UNSUPPORTED = {  # keys that must be empty, and how people call what they do
    "use_dora": "DoRA",
    "modules_to_save": "modules trained as a whole (modules_to_save)",
    "lora_bias": "bias on B (lora_bias)",
    "alora_invocation_tokens": "activated LoRA (alora_invocation_tokens)",
    "layer_replication": "replicated layers (layer_replication)",
    "use_bdlora": "block-diagonal LoRA (use_bdlora)",
    "use_qalora": "QA-LoRA (use_qalora)",
    "trainable_token_indices": "trained tokens (trainable_token_indices)",
}
# Architectures that vLLM runs by code of its own which takes no LoRA; those it does not know run on transformers'.
WITHOUT_LORA = {
    *("BloomForCausalLM", "DbrxForCausalLM", "FalconForCausalLM", "FalconMambaForCausalLM", "GPT2LMHeadModel"),
    *("GPTJForCausalLM", "Gemma3nForCausalLM", "KimiLinearForCausalLM", "Mamba2ForCausalLM", "MambaForCausalLM"),
    *("OrionForCausalLM", "StableLmForCausalLM", "Zamba2ForCausalLM", "Cohere2MoeForCausalLM"),
}
_LAYERS = {*("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")}
_ENDS = {"embed_tokens", "lm_head"}
MODULES = {  # what LoRA may stand on, of architectures that were looked up; of others it is not checked
    "LlamaForCausalLM": _LAYERS | _ENDS,
    "SolarForCausalLM": _LAYERS | _ENDS,
    "GraniteForCausalLM": _LAYERS | _ENDS,
    "Qwen3ForCausalLM": _LAYERS | _ENDS,
    "Qwen2ForCausalLM": _LAYERS,
    "MistralForCausalLM": _LAYERS,
    "GemmaForCausalLM": _LAYERS,
    "Gemma2ForCausalLM": _LAYERS,
    "Gemma3ForCausalLM": _LAYERS,
    "Phi3ForCausalLM": {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"} | _ENDS,
}
LARGEST_HEAD = 258048  # tokens of a vocabulary whose head can bear LoRA
MERGED = "serve the merged model instead (publish.what: [merged])"
Shapes = Mapping[str, Sequence[int]]


def lint(config: Mapping[str, Any], tensors: Shapes, architecture: str, vocabulary: int | None = None) -> list[str]:
    """Everything about an adapter that vLLM rejects, or leaves out without a word; each with what to do.

    `config` is adapter_config.json, `tensors` the shape of each tensor by name, `architecture` and `vocabulary` (in
    tokens) are the base's.
    """
    if (kind := config.get("peft_type")) != "LORA":
        return [f"it is a {kind} adapter, and vLLM serves LoRA only: train it as LoRA, or {MERGED}."]
    found = [f"vLLM has no {what}: {MERGED}." for key, what in UNSUPPORTED.items() if config.get(key)]
    if architecture in WITHOUT_LORA:
        found.append(f"vLLM takes no LoRA on {architecture}: {MERGED}.")
    if (bias := config.get("bias", "none")) != "none":
        found.append(f"it trained biases (bias: {bias}), which vLLM does not serve: {MERGED}.")
    if (rank := highest_rank(config)) > MAX_LORA_RANKS[-1]:
        found.append(f"its highest rank is {rank}, and vLLM goes up to {MAX_LORA_RANKS[-1]}: lower it, or {MERGED}.")
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in PLAIN_STARTS:
        found.append(
            f"it says init_lora_weights: {start}, which changes the base's weights when PEFT loads it, and vLLM does "
            f"not do that: convert it with PEFT (path_initial_model_for_weight_conversion), or {MERGED}."
        )
    return found + _of_tensors(config, tensors, architecture, vocabulary)


def remarks(config: Mapping[str, Any], architecture: str) -> list[str]:
    """What vLLM serves, but not in every version or not by its own code."""
    found = []
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        found.append(
            f"its modules differ in rank or scale (rank_pattern, alpha_pattern): vLLM {VLLM} reads that, older ones "
            "scale all modules alike without a word."
        )
    if architecture not in WITHOUT_LORA and architecture not in MODULES:
        found.append(f"which of its modules vLLM takes is not checked for {architecture}; try it.")
    return found


def highest_rank(config: Mapping[str, Any]) -> int:
    return max([int(config.get("r") or 0), *map(int, (config.get("rank_pattern") or {}).values())])


def max_lora_rank(ranks: Iterable[int]) -> int:
    """The smallest value of --max-lora-rank that has room for these ranks."""
    highest = max(ranks)
    return next(allowed for allowed in MAX_LORA_RANKS if allowed >= highest)


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """{tensor: shape} of an adapter, from its header alone; IntegrityError if the file is cut or says nonsense."""
    from tasks.merging.weights import Weights  # imports torch

    weights = Weights(folder, "adapter_model")
    return {name: weights.entry(name).shape for name in weights.names}


def _of_tensors(config: Mapping[str, Any], tensors: Shapes, architecture: str, vocabulary: int | None) -> list[str]:
    modules, strange, left_out, found = set(), set(), set(), []
    for name, shape in tensors.items():
        parts = name.removeprefix("base_model.model.").split(".")
        if parts[-2:] in (["lora_A", "weight"], ["lora_B", "weight"]):
            modules.add(parts[-3])
        elif parts[-1] in ("lora_embedding_A", "lora_embedding_B"):
            modules.add(parts[-2])
            if parts[-1] == "lora_embedding_A" and vocabulary and shape[1] != vocabulary:
                found.append(
                    f"its LoRA on {parts[-2]} knows {shape[1]} tokens and the base {vocabulary}: vLLM wants the same "
                    "number; train it without new tokens, or " + MERGED + "."
                )
        elif name.endswith((".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")):
            left_out.add(parts[-3])
        elif not _explained(config, parts):
            strange.add(".".join(parts[-2:]))
    if left_out:
        found.append(
            f"it brings weights of its own for {_listed(left_out)}, which vLLM leaves out without a word: save it with "
            f"save_embedding_layers=False if the base's are the same, else {MERGED}."
        )
    if strange:
        found.append(f"it has tensors that vLLM cannot read ({_listed(strange)}): {MERGED}.")
    known = MODULES.get(architecture)
    if known is not None and (unknown := modules - known):
        found.append(
            f"it stands on {_listed(unknown)}, where vLLM takes no LoRA in {architecture} (only {_listed(known)}): "
            f"train it on those, or {MERGED}."
        )
    elif "lm_head" in modules and vocabulary and vocabulary > LARGEST_HEAD:
        found.append(f"it stands on a head of {vocabulary} tokens, and vLLM goes up to {LARGEST_HEAD}: {MERGED}.")
    return found


def _explained(config: Mapping[str, Any], parts: Sequence[str]) -> bool:
    """Whether a setting that was told already is why this tensor is there."""
    if config.get("use_dora") and "lora_magnitude_vector" in parts:
        return True
    if parts[-1] == "bias" and (config.get("bias", "none") != "none" or config.get("lora_bias")):
        return True
    if config.get("trainable_token_indices") and "token_adapter" in parts:
        return True
    return any(module in parts for module in config.get("modules_to_save") or ())


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
