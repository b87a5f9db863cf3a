"""How near a merged model's answers are to those of the adapter that was judged: mean KL and top-1 agreement.

    held-out rows -> token ids -> one model's logits at the last positions of each -> the next model's -> distance

The models are loaded one after another by the function that loaded the judged base, so in bfloat16 (a 4-bit base in
NF4), and of one that has answered only its logits stay. Where an adapter moves its base by hardly more than bfloat16
does, a sum is compared in float32. KL(p, q) in nats is what a reader who expects p loses by
reading q (Kullback and Leibler 1951), here p of the unmerged adapter and q of the merged model.
"""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.nn.functional import kl_div, log_softmax

from tasks.ingestion.dataset import read_jsonl
from tasks.merging.naming import stored_name
from tasks.merging.rounding import Rounding
from tasks.training.models import Quantization, load_base
from tasks.training.rendering import render, render_pair

ROWS = 16  # held-out rows that are read
POSITIONS = 128  # of each row, from its end, where the answer stands: with a large vocabulary logits are long

Logits = list[torch.Tensor]  # one (positions, vocabulary) a row, in the dtype that the model gave


@dataclass(frozen=True)
class Closeness:
    """Of a model to another, over all positions of all rows."""

    mean_kl_nats: float
    top1_agreement: float  # share of positions at which both find the same token likeliest, 0 to 1
    positions: int

    def figures(self) -> dict[str, float | int]:
        return {
            "mean_kl_nats": round(self.mean_kl_nats, 6),
            "top1_agreement": round(self.top1_agreement, 4),
            "positions": self.positions,
        }


def read_texts(tokenizer: Any, data: Path) -> list[torch.Tensor]:
    """Token ids (1, tokens) of the first held-out rows, or of training rows where none are held out."""
    rows = read_jsonl(data / "held_out.jsonl") or read_jsonl(data / "train.jsonl")
    rendered = (render_pair(tokenizer, row)[0] if "chosen" in row else render(tokenizer, row) for row in rows[:ROWS])
    return [torch.tensor([row.input_ids]) for row in rendered]


@dataclass(frozen=True)
class Unmerged:
    """What a base with an adapter on it answers, and how far the adapter moves it: KL(with, without)."""

    logits: Logits
    effect: Closeness


def unmerged(base: Path, adapter: Path, texts: list[torch.Tensor], quantization: Quantization, device: str) -> Unmerged:
    """Of the base in that precision, loaded as evaluation loads it."""
    return _asked(load_base(base, quantization, device), adapter, texts)


def unmerged_in_float32(
    base: Path, adapter: Path, texts: list[torch.Tensor], rounding: Rounding, device: str
) -> Unmerged:
    """Of the base computed in float32, with the weights that `rounding` rounds as they are rounded."""
    model = load_base(base, "none", device, torch.float32)
    if rounding.through:
        found = dict(model.named_parameters())
        for name in rounding.names:
            weight = found[stored_name(name, found)].data
            weight.copy_(rounding.through(weight.cpu()))
    return _asked(model, adapter, texts)


def _asked(base: Any, adapter: Path, texts: list[torch.Tensor]) -> Unmerged:
    model = PeftModel.from_pretrained(base, adapter)
    worn = answers(model, texts)
    with model.disable_adapter():
        return Unmerged(worn, closeness(worn, answers(model, texts)))


@torch.inference_mode()
def answers(model: Any, texts: list[torch.Tensor]) -> Logits:
    """Logits that `model` gives at the last positions of each text, on the CPU."""
    model.eval()
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    able = "logits_to_keep" in inspect.signature(plain.forward).parameters  # nearly all: the head computes no others
    options = {"logits_to_keep": POSITIONS} if able else {}
    return [model(ids.to(model.device), **options).logits[0, -POSITIONS:].cpu() for ids in texts]


def closeness(expected: Logits, found: Logits) -> Closeness:
    """KL(expected, found); NaN where one of them gives no numbers, so compare it as `not kl <= limit`."""
    divergence, same, positions = 0.0, 0, 0
    for one, other in zip(expected, found, strict=True):
        p, q = (log_softmax(logits.float(), dim=-1) for logits in (one, other))
        divergence += float(kl_div(q, p, log_target=True, reduction="sum"))
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
        positions += len(p)
    return Closeness(divergence / positions, same / positions, positions)
