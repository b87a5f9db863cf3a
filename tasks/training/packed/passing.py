"""One pass through the shared base: whose tokens stand where, and the attention that keeps them apart.

transformers calls the attention by the name it is registered under, and hands no arguments of ours through all of its
architectures; so what the pass consists of is kept here while it runs, backward included. One pass at a time.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface

from tasks.training.packed.layout import Block

NAME = "tunefleet_packed"


@dataclass(frozen=True)
class Span:
    """The tokens of one member, first to one past the last; `draw` numbers the pass for its dropout."""

    member: str
    start: int
    stop: int
    draw: int


@dataclass(frozen=True)
class Pass:
    """Everything a pass needs, on its device."""

    ids: torch.Tensor  # (1, tokens) int64
    positions: torch.Tensor  # (1, tokens) int64
    spans: tuple[Span, ...]
    blocks: tuple[tuple[int, int, torch.Tensor | None], ...]  # start, stop, (1, 1, n, n) added to the scores, or causal
    predicting: torch.Tensor  # (labels,) int64: places of the tokens that predict
    targets: torch.Tensor  # (labels,) int64: what they are to predict
    weights: torch.Tensor  # (labels,): what each counts in its member's loss
    owners: tuple[tuple[str, int, int], ...]  # (member, start, stop) of its labels


@dataclass(frozen=True)
class Part:
    """What one member brings into a pass; `weight` is what one label counts in its loss."""

    member: str
    blocks: Sequence[Block]
    weight: float
    draw: int = 0


def make_pass(parts: Sequence[Part], device: str, dtype: torch.dtype) -> Pass:
    """The parts one behind the other; `dtype` is that in which attention is computed."""
    ids: list[int] = []
    positions: list[int] = []
    labels: list[tuple[int, int, float]] = []
    spans, owners, masks = [], [], []
    for part in parts:
        start, first_label = len(ids), len(labels)
        for block in part.blocks:
            offset = len(ids)
            masks.append((offset, offset + len(block.ids), None if block.is_causal else _mask(block, device, dtype)))
            labels += [(offset + place, label, part.weight * count) for place, label, count in block.labels]
            ids += block.ids
            positions += block.positions
        spans.append(Span(part.member, start, len(ids), part.draw))
        owners.append((part.member, first_label, len(labels)))
    places, targets, weights = zip(*labels, strict=True) if labels else ((), (), ())
    return Pass(
        ids=torch.tensor([ids], device=device),
        positions=torch.tensor([positions], device=device),
        spans=tuple(spans),
        blocks=tuple(masks),
        predicting=torch.tensor(places, dtype=torch.long, device=device),
        targets=torch.tensor(targets, dtype=torch.long, device=device),
        weights=torch.tensor(weights, dtype=torch.float64, device=device),
        owners=tuple(owners),
    )


def _mask(block: Block, device: str, dtype: torch.dtype) -> torch.Tensor:
    """(1, 1, n, n): 0 where row i attends to column j, minus infinity elsewhere."""
    place = torch.arange(len(block.ids), device=device)
    reach = torch.tensor(block.reach, device=device)
    attends = (place[None, :] <= place[:, None]) & (place[:, None] < reach[None, :])
    return torch.zeros(attends.shape, dtype=dtype, device=device).masked_fill_(~attends, -torch.inf)[None, None]


_running: Pass | None = None


@contextmanager
def running(one: Pass) -> Iterator[None]:
    """Around forward and backward of a pass."""
    global _running
    assert _running is None, "one pass at a time"
    _running = one
    try:
        yield
    finally:
        _running = None


def current() -> Pass:
    assert _running is not None, "the shared base was called outside of a pass"
    return _running


def attention_dtype(dtype: torch.dtype, device: str) -> torch.dtype:
    """In what attention over a model's `dtype` is computed; on a CPU the backward of bfloat16 is slower than a cast."""
    return torch.float32 if device == "cpu" and dtype == torch.bfloat16 else dtype


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,  # (1, heads, tokens, size)
    key: torch.Tensor,  # (1, heads of keys, tokens, size)
    value: torch.Tensor,  # the same
    attention_mask: Any,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each block; (1, tokens, heads, size), as transformers wants it."""
    now, given = current(), query.dtype
    dtype = attention_dtype(given, query.device.type)
    query, key, value = (one.to(dtype) for one in (query, key, value))
    groups = query.shape[1] // key.shape[1]
    repeats = groups > 1 and query.device.type != "cpu"  # under a mask, a GPU's fused kernels want a key for each query
    if repeats:
        key, value = (one.repeat_interleave(groups, dim=1) for one in (key, value))
    out = [
        functional.scaled_dot_product_attention(
            query[:, :, start:stop],
            key[:, :, start:stop],
            value[:, :, start:stop],
            attn_mask=mask,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=groups > 1 and not repeats,
        )
        for start, stop, mask in now.blocks
    ]
    return torch.cat(out, dim=2).transpose(1, 2).to(given), None


AttentionInterface.register(NAME, _attend)
