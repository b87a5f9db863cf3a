"""Tiny models in float64, where two ways of computing the same differ by rounding of 1e-16 and by nothing else."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tasks.recipe.schema import Lora
from tasks.training.features import Features
from tasks.training.models import add_adapter
from tasks.training.packed.layout import blocks_of, passes_of, trained_tokens
from tasks.training.packed.passing import Part
from tasks.training.packed.weights import AdapterWeights
from tasks.training.rendering import IGNORED

VOCABULARY = 23
NOWHERE = Path("/nowhere")  # only LoftQ looks at the base's files


def llama() -> Any:
    """Grouped attention and tied embeddings."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    return _spread(LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **shape, **heads)))


def gpt2() -> Any:
    """Learned positions, biases, and weights that are stored transposed."""
    torch.manual_seed(0)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    off = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    return _spread(GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **shape, **off)))


def _spread(model: Any) -> Any:
    """Weights large enough that every token looks at the others, and that no bias is zero."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.double().eval()


def exact_norm(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    """LlamaRMSNorm's forward without its float32, which is noise of 1e-8."""
    mean = hidden_states.pow(2).mean(-1, keepdim=True)
    return self.weight * hidden_states * torch.rsqrt(mean + self.variance_epsilon)


def lora(**changes: Any) -> dict[str, Any]:
    return Lora(**changes).model_dump(mode="json")


def new_weights(model: Any, settings: Mapping[str, Any], seed: int) -> AdapterWeights:
    return AdapterWeights(model, settings, NOWHERE, seed, torch.float64)


def plain(model: Any, settings: Mapping[str, Any], weights: AdapterWeights) -> Any:
    """PEFT's model on a copy of `model`, with the values of `weights`."""
    adapted = add_adapter(copy.deepcopy(model), settings).double()
    for name, (a, b) in matrices(adapted).items():
        a.data.copy_(weights.layers[name].a.data)
        b.data.copy_(weights.layers[name].b.data)
    return adapted


def matrices(adapted: Any) -> dict[str, tuple[torch.nn.Parameter, torch.nn.Parameter]]:
    """A and B of a PEFT model by the module that they adapt."""
    return {
        name: (one.lora_A["default"].weight, one.lora_B["default"].weight)
        for name, one in adapted.get_base_model().named_modules()
        if hasattr(one, "lora_A")
    }


def mean_loss(model: Any, rows: Sequence[Features]) -> torch.Tensor:
    """Mean negative log-likelihood of the trained tokens, each row alone in its forward pass."""
    total = sum((_loss(model, row) for row in rows), torch.zeros((), dtype=torch.float64))
    return total / max(sum(map(trained_tokens, rows)), 1)


def _loss(model: Any, row: Features) -> torch.Tensor:
    logits = model(torch.tensor([row["input_ids"]]), use_cache=False).logits[0, :-1]
    wanted = torch.tensor(row["labels"][1:], dtype=torch.long)
    return cross_entropy(logits, wanted, ignore_index=IGNORED, reduction="sum")


def parts(
    member: str, rows: Sequence[Features], *, hidden: int, capacity: int, draw: int = 0, shares: bool = True
) -> list[Part]:
    """What a member brings into each pass of one optimizer step."""
    blocks = blocks_of(rows, hidden, capacity=capacity, shares=shares)
    weight = 1 / max(sum(map(trained_tokens, rows)), 1)
    return [Part(member, some, weight, draw=draw + number) for number, some in enumerate(passes_of(blocks, capacity))]
