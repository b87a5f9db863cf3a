"""What a 4-bit base does to its weights: which of them it rounds, and to what.

QLoRA (arXiv 2305.14314) trains an adapter on weights rounded to NF4 with double quantisation. Both questions are put
to what loads such a base (tasks/training/models.py): transformers says which layers it replaces, on a model without
weights, and bitsandbytes' own parameter does the rounding. Nothing is dequantised after a forward: on CPUs with
AVX512-bf16 that one repacks 4-bit weights in place.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Params4bit
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import AutoHfQuantizer

from infra.errors import RequestError
from tasks.merging.naming import stored_name
from tasks.merging.weights import Weights
from tasks.training.models import COMPUTE_DTYPE, meta_base, nf4_config


@dataclass(frozen=True)
class Rounding:
    """Names of the base's tensors that are rounded, and what rounds one of them."""

    names: frozenset[str]
    through: Callable[[torch.Tensor], torch.Tensor] | None


NO_ROUNDING = Rounding(frozenset(), None)


def rounding_of(base: Path, weights: Weights, device: str) -> Rounding:
    """What loading `base` in 4 bits does to its tensors; RequestError if it would round none, or unknown ones."""
    model = meta_base(base)
    AutoHfQuantizer.from_config(nf4_config(device), pre_quantized=False).preprocess_model(model, device_map=None)
    layers = {
        name: issubclass(module.source_cls, Conv1D)
        for name, module in model.named_modules()
        if type(module).__name__ == "Linear4bit"
    }
    stored, wrong = set(), [] if layers else ["nothing in it would be rounded to 4 bits"]
    known = set(weights.names)
    for layer in layers:
        try:
            stored.add(stored_name(f"{layer}.weight", known))
        except LookupError as error:
            wrong.append(f"no {layer}.weight in its files, {error}")
    if len(set(layers.values())) > 1:
        wrong.append("it has both Linear and Conv1D layers")
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise RequestError(
            f"{base} cannot be merged into as a 4-bit base: {wrong[0]}{more}; set publish.merge.into: 16-bit."
        )
    transposed = any(layers.values())
    return Rounding(frozenset(stored), partial(through_nf4, transposed=transposed, device=device))


@torch.no_grad()
def through_nf4(weight: torch.Tensor, *, transposed: bool = False, device: str = "cpu") -> torch.Tensor:
    """`weight` (rows, columns) as a 4-bit base on `device` multiplies by it, in the dtype it came in.

    The base is loaded in bfloat16 and rounded from there, whatever its files hold. 64 values in a row share a scale,
    so it matters which way round a weight lies: Conv1D's are `transposed` first.
    """
    weight, dtype = (weight.T if transposed else weight).to(COMPUTE_DTYPE), weight.dtype
    config = nf4_config(device)
    packed: Any = Params4bit(
        weight,
        compress_statistics=config.bnb_4bit_use_double_quant,
        quant_type=config.bnb_4bit_quant_type,
        quant_storage=config.bnb_4bit_quant_storage,
    )
    packed = packed.to(device)  # rounds
    rounded = dequantize_4bit(packed.data, packed.quant_state).to("cpu", dtype)
    return (rounded.T if transposed else rounded).contiguous()
