"""A frozen layer with the adapters of several members on it: one product with the base's weight for all of them.

    y[span] = x[span] W' + b + scaling (dropout(x[span]) A') B'        for the span of tokens of each member

as PEFT computes it for one (peft/tuners/lora/layer.py): A and B in float32, the sum rounded to the base's dtype. The
base's weight is read once for all rows, and from 4 bits made once. For the backward, x and the narrow product with A
are kept and nothing else; what dropout let through is drawn again, which needs no state: seed, pass and layer say it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from tasks.training.packed.passing import Span, current


@dataclass(frozen=True)
class Adaptation:
    """One member's part in one layer."""

    a: nn.Parameter  # (rank, in)
    b: nn.Parameter  # (out, rank)
    scaling: float
    dropout: float
    seed: int  # of this layer's dropout


class SharedLinear(nn.Module):
    """Over an nn.Linear, transformers' Conv1D or bitsandbytes' Linear4bit, whose weights stay as they are.

    `keeps` is whether the weights that 4 bits stand for are made once for good, instead of once a pass in each
    direction: the same numbers, for four times the memory.
    """

    def __init__(self, base: Any, *, keeps: bool):
        super().__init__()
        self.adaptations: dict[str, Adaptation] = {}
        self.bias: torch.Tensor | None = base.bias
        self.is_transposed = isinstance(base, Conv1D)
        self.quant_state = getattr(base.weight, "quant_state", None)
        self.frozen: torch.Tensor = base.weight.data  # no parameter: it is nobody's to train, move or save
        self.compute_dtype: torch.dtype | None = getattr(base, "compute_dtype", None)
        if self.quant_state is not None and keeps:
            self.frozen, self.quant_state = self.weight(), None

    def weight(self) -> torch.Tensor:
        """(out, in), in the dtype of computation."""
        if self.quant_state is None:
            return self.frozen.t() if self.is_transposed else self.frozen
        from bitsandbytes.functional import dequantize_4bit

        made = dequantize_4bit(self.frozen, self.quant_state)
        return made.to(self.compute_dtype) if self.compute_dtype else made

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spans = [(span, self.adaptations[span.member]) for span in current().spans if span.member in self.adaptations]
        matrices = [matrix for _, one in spans for matrix in (one.a, one.b)]
        return _Adapted.apply(x, self, spans, *matrices)


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, layer: SharedLinear, spans: list[tuple[Span, Adaptation]], *_: torch.Tensor
    ) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        y = functional.linear(flat, layer.weight(), layer.bias)
        narrow = []
        for span, one in spans:
            part = slice(span.start, span.stop)
            narrow.append(_dropped(flat[part].to(one.a.dtype), span, one) @ one.a.t())
            y[part] = torch.addmm(y[part].to(one.b.dtype), narrow[-1], one.b.t(), alpha=one.scaling)
        ctx.layer, ctx.spans = layer, spans
        ctx.save_for_backward(x, *narrow)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        x, *narrow = ctx.saved_tensors
        flat, gy = x.reshape(-1, x.shape[-1]), gradients[0].reshape(-1, gradients[0].shape[-1])
        needs_x = ctx.needs_input_grad[0]
        gx = gy @ ctx.layer.weight() if needs_x else None
        of_matrices: list[torch.Tensor] = []
        for (span, one), z in zip(ctx.spans, narrow, strict=True):
            part = slice(span.start, span.stop)
            own = gy[part].to(one.b.dtype)
            gz = (own @ one.b).mul_(one.scaling)
            of_matrices += [gz.t() @ _dropped(flat[part].to(one.a.dtype), span, one), (own.t() @ z).mul_(one.scaling)]
            if gx is not None:
                gx[part] += _dropped(gz @ one.a, span, one).to(gx.dtype)
        return (gx.view_as(x) if gx is not None else None, None, None, *of_matrices)


def _dropped(x: torch.Tensor, span: Span, one: Adaptation) -> torch.Tensor:
    """`x` or its gradient with what this pass drops out of this member in this layer; the same whenever it is asked."""
    if not one.dropout or span.draw < 0:
        return x
    generator = torch.Generator(x.device).manual_seed((one.seed + span.draw * 1_000_003) % 2**63)
    kept = torch.empty_like(x).bernoulli_(1 - one.dropout, generator=generator)
    return x * kept.div_(1 - one.dropout)
