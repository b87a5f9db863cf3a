"""Tiny real models of several families, real PEFT adapters on them, and what PEFT itself makes of both."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from tasks.merging.weights import Weights

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
IDS = torch.tensor([[1, 5, 9, 33, 60, 2]])


def save_llama(
    folder: Path, *, dtype: str = "F32", tied: bool = False, hidden: int = 32, shard: str = "50GB", seed: int = 0
) -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=71,
        hidden_size=hidden,
        intermediate_size=hidden + 16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    LlamaForCausalLM(config).to(DTYPES[dtype]).save_pretrained(folder, max_shard_size=shard)
    return folder


def save_gpt2(
    folder: Path, *, dtype: str = "F32", shard: str = "50GB", seed: int = 0, headless: bool = False, tied: bool = True
) -> Path:
    """Conv1D layers; `headless` files name no prefix (h.0.attn...), as those of the real GPT-2."""
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=71, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
    config.tie_word_embeddings = tied
    model = GPT2Model(config) if headless else GPT2LMHeadModel(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.02)
    model.to(DTYPES[dtype]).save_pretrained(folder, max_shard_size=shard)
    return folder


def save_mixtral(folder: Path, *, dtype: str = "F32", shard: str = "50GB", seed: int = 0) -> Path:
    """A mixture of experts, whose files hold each expert alone and whose model holds them as one tensor."""
    torch.manual_seed(seed)
    config = MixtralConfig(
        vocab_size=71,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=3,
    )
    MixtralForCausalLM(config).to(DTYPES[dtype]).save_pretrained(folder, max_shard_size=shard)
    return folder


def save_adapter(base: Path, folder: Path, config: LoraConfig, *, seed: int = 1, strength: float = 0.05) -> Path:
    """An adapter on `base` with random numbers wherever training could have left some."""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if "magnitude" in name:
                parameter.mul_(1 + strength * torch.randn_like(parameter))
            elif "lora_" in name and "lora_B.default.bias" not in name:
                parameter.normal_(std=strength**0.5)
            else:
                parameter.add_(strength * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def unmerged(base: Path, adapter: Path) -> Any:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter).eval()


def by_peft(base: Path, adapter: Path, dtype: str) -> dict[str, torch.Tensor]:
    """{tensor: value} of PEFT's merge in float32, rounded to `dtype` at the end."""
    merged = unmerged(base, adapter).merge_and_unload()
    return {name: value.to(DTYPES[dtype]) for name, value in merged.state_dict().items()}


def changed_tensors(base: Path, output: Path) -> set[str]:
    """Names of the tensors that have other bytes in `output`."""
    old, new = Weights(base), Weights(output)
    return {name for name in old.names if not torch.equal(old.read_bytes(name), new.read_bytes(name))}


def loaded(folder: Path, dtype: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype]).eval()
