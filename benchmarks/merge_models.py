"""What benchmarks/merge.py merges: a random adapter on every linear layer, and a random Llama of any size to take it.

The Llama is of bfloat16, in 18 shards or more, each written as it is made.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path

SHARDS = 18  # at least
RANK = 16
HIDDEN, MIDDLE, HEADS, KEY_HEADS, VOCABULARY = 3072, 8192, 24, 8, 32000
Shape = tuple[str, tuple[int, ...]]


def synthetic(folder: Path, gigabytes: float) -> Path:
    """A Llama of about so many 10^9 bytes: config.json, and random bfloat16 weights in shards with their index."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    per_layer = 2 * sum(math.prod(shape) for _, shape in tensors_of_layer(0))
    layers = max(1, round((gigabytes * 1e9 - 4 * VOCABULARY * HIDDEN) / per_layer))
    LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=MIDDLE,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        vocab_size=VOCABULARY,
        tie_word_embeddings=False,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)
    named: list[Shape] = [("model.embed_tokens.weight", (VOCABULARY, HIDDEN))]
    named += [one for layer in range(layers) for one in tensors_of_layer(layer)]
    named += [("model.norm.weight", (HIDDEN,)), ("lm_head.weight", (VOCABULARY, HIDDEN))]
    largest = 2 * sum(math.prod(shape) for _, shape in named) // SHARDS
    generator = torch.Generator().manual_seed(0)
    shards = list(filled(named, largest))
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weights = {
            name: torch.ones(shape, dtype=torch.bfloat16)
            if name.endswith("norm.weight")
            else torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02, generator=generator)
            for name, shape in shard
        }
        save_file(weights, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(weights, file)
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)
    return folder


def tensors_of_layer(layer: int) -> list[Shape]:
    keys = HIDDEN // HEADS * KEY_HEADS
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm": (HIDDEN,),
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (keys, HIDDEN),
        "self_attn.v_proj": (keys, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "post_attention_layernorm": (HIDDEN,),
        "mlp.gate_proj": (MIDDLE, HIDDEN),
        "mlp.up_proj": (MIDDLE, HIDDEN),
        "mlp.down_proj": (HIDDEN, MIDDLE),
    }
    return [(f"model.layers.{layer}.{name}.weight", shape) for name, shape in shapes.items()]


def filled(named: list[Shape], largest: int) -> Iterator[list[Shape]]:
    """Tensors in shards of at most `largest` bytes, but never an empty one."""
    shard: list[Shape] = []
    size = 0
    for name, shape in named:
        if shard and size + 2 * math.prod(shape) > largest:
            yield shard
            shard, size = [], 0
        shard.append((name, shape))
        size += 2 * math.prod(shape)
    yield shard


def write_adapter(base: Path, folder: Path) -> Path:
    """PEFT's files of a random adapter on every linear layer of `base`; only the shapes of the model are built."""
    import torch
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from safetensors.torch import save_file

    from tasks.training.models import meta_base

    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(meta_base(base), config)
    generator = torch.Generator().manual_seed(1)
    update = {
        name: torch.empty(tensor.shape).normal_(std=0.02, generator=generator)
        for name, tensor in get_peft_model_state_dict(model).items()
    }
    folder.mkdir()
    save_file(update, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.peft_config["default"].inference_mode = True
    model.peft_config["default"].save_pretrained(str(folder))
    return folder
