"""What llama.cpp calls a model's parts, and the settings it computes with; everything that it cannot say is refused.

Llama and Mistral are "llama" there, Qwen2 and Qwen3 have their own names. The one difference that no name shows: the
rotary embedding (arXiv 2104.09864) turns pairs of numbers, and llama.cpp's Llama takes neighbours for pairs where
transformers takes one of the head's first half with one of its second. So the rows of its query and key projections
change places; Qwen's stay.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import gguf
import numpy as np
from gguf import MODEL_ARCH, GGUFWriter, RopeScalingType

from infra.errors import Fault, RequestError

ARCHITECTURES = {
    "llama": MODEL_ARCH.LLAMA,
    "mistral": MODEL_ARCH.LLAMA,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3,
}
IN_EACH_BLOCK = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
BESIDE_THEM = {
    MODEL_ARCH.LLAMA: (),
    MODEL_ARCH.QWEN2: ("attn_q.bias", "attn_k.bias", "attn_v.bias"),
    MODEL_ARCH.QWEN3: ("attn_q_norm.weight", "attn_k_norm.weight"),
}
ROPE_TYPES = ("default", "linear", "llama3")


@lru_cache
def _names(kind: MODEL_ARCH, blocks: int) -> gguf.TensorNameMap:
    return gguf.get_tensor_name_map(kind, blocks)


@dataclass(frozen=True)
class Architecture:
    """A transformers configuration, read as llama.cpp reads it."""

    kind: MODEL_ARCH
    config: Any

    @property
    def name(self) -> str:
        return gguf.MODEL_ARCH_NAMES[self.kind]

    @property
    def head_dim(self) -> int:
        return getattr(self.config, "head_dim", None) or self.config.hidden_size // self.config.num_attention_heads

    @property
    def context_length(self) -> int:
        """Tokens up to which llama.cpp computes what transformers does: it knows no sliding window here."""
        longest = int(self.config.max_position_embeddings)
        window = getattr(self.config, "sliding_window", None)
        return min(longest, window) if window and getattr(self.config, "use_sliding_window", True) else longest

    @property
    def notes(self) -> list[str]:
        """What a reader of the file should know."""
        if self.context_length < self.config.max_position_embeddings:
            return [f"context_length is the sliding window, {self.context_length}: llama.cpp attends to all tokens"]
        return []

    def gguf_name(self, name: str) -> str | None:
        return _names(self.kind, self.config.num_hidden_layers).get_name(name, try_suffixes=(".weight", ".bias"))

    def unnamed(self, name: str) -> Fault:
        return Fault(f"{name} has no name in llama.cpp's {self.name}.")

    def gguf_names(self, names: list[str]) -> dict[str, str]:
        """{name in transformers: name in llama.cpp} of what is to be written; RequestError if they do not match."""
        found = {name: self.gguf_name(name) for name in names}
        if self.config.tie_word_embeddings:  # the head is the embeddings; some folders hold it twice
            found.pop("lm_head.weight", None)
        needed = {"token_embd.weight", "output_norm.weight"}
        if not self.config.tie_word_embeddings:
            needed.add("output.weight")
        for block in range(self.config.num_hidden_layers):
            parts = (*(f"{part}.weight" for part in IN_EACH_BLOCK), *BESIDE_THEM[self.kind])
            needed |= {f"blk.{block}.{part}" for part in parts}
        faults = [self.unnamed(name) for name, other in found.items() if not other]
        faults += [Fault(f"{name} is missing from the weights.") for name in sorted(needed - set(found.values()))]
        if faults:
            raise RequestError(faults)
        return {name: str(other) for name, other in found.items()}

    def arranged(self, gguf_name: str, values: np.ndarray) -> np.ndarray:
        """`values` with the rows in llama.cpp's order: (out, in) weights, (out,) biases or (out, r) LoRA B."""
        part = gguf_name.split(".")[2] if gguf_name.startswith("blk.") else ""
        if self.kind is not MODEL_ARCH.LLAMA or part not in ("attn_q", "attn_k"):
            return values
        heads = self.config.num_attention_heads if part == "attn_q" else self.config.num_key_value_heads
        halves = values.reshape(heads, 2, self.head_dim // 2, *values.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)

    def extra_tensors(self) -> dict[str, np.ndarray]:
        """What llama.cpp reads as a tensor and transformers computes: by how much llama3's scaling slows each pair."""
        if self.config.rope_parameters["rope_type"] != "llama3":
            return {}
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        scaled = ROPE_INIT_FUNCTIONS["llama3"](self.config, "cpu")[0].numpy()  # (head_dim / 2,)
        exponents = np.arange(0, self.head_dim, 2, dtype=np.float32) / self.head_dim
        plain = 1.0 / np.float32(self.config.rope_parameters["rope_theta"]) ** exponents
        return {"rope_freqs.weight": (plain / scaled).astype(np.float32)}

    def describe(self, writer: GGUFWriter) -> None:
        """Write the settings that llama.cpp computes with."""
        config, rope = self.config, self.config.rope_parameters
        writer.add_context_length(self.context_length)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(self.head_dim)
        writer.add_value_length(self.head_dim)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_dimension_count(self.head_dim)
        writer.add_rope_freq_base(float(rope["rope_theta"]))
        if rope["rope_type"] == "linear":
            writer.add_rope_scaling_type(RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(float(rope["factor"]))


def architecture_of(config: Any) -> Architecture:
    """The architecture of a transformers configuration; RequestError names all that llama.cpp computes otherwise."""
    kind = ARCHITECTURES.get(config.model_type)
    if kind is None:
        raise RequestError(
            f"a {config.model_type!r} model cannot be exported to GGUF here; allowed are {', '.join(ARCHITECTURES)}. "
            "llama.cpp's own convert_hf_to_gguf.py knows more."
        )
    rope = config.rope_parameters
    allowed = ROPE_TYPES if kind is MODEL_ARCH.LLAMA else ROPE_TYPES[:2]
    part = rope.get("partial_rotary_factor") or 1
    wrong = {
        f"hidden_act is {config.hidden_act!r}, llama.cpp computes 'silu'": config.hidden_act != "silu",
        f"rope_type is {rope['rope_type']!r}; allowed are {', '.join(allowed)}": rope["rope_type"] not in allowed,
        f"partial_rotary_factor is {part}; only 1 can be said": part != 1,
        "attention_bias is true, which llama.cpp's qwen3 has not": kind is MODEL_ARCH.QWEN3 and config.attention_bias,
        "the weights are quantised; export the 16-bit ones": getattr(config, "quantization_config", None) is not None,
    }
    faults = [Fault(f"config.json: {what}.") for what, is_so in wrong.items() if is_so]
    if faults:
        raise RequestError(faults)
    return Architecture(kind, config)
