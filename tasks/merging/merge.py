"""Merging: W + scale * B @ A written into the base's 16-bit weights, and shown to answer like base + adapter.

    base (float32) + adapter -> logits -> merge_and_unload -> bfloat16 safetensors -> reload -> logits again

A QLoRA adapter is merged into the 16-bit weights that its 4-bit base was made from, never into 4-bit ones: a sum
quantised again can lose a light fine-tune. Every tensor that the adapter does not touch must be byte-equal to the
base's, every one that it touches must differ, and the reloaded model must answer as the unmerged one does.
"""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from torch.nn.functional import kl_div, log_softmax
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from infra.errors import StageError
from tasks.ingestion.dataset import read_jsonl
from tasks.training.rendering import render, render_pair

KL_LIMIT = 0.02  # nats, mean over positions: rounding a sum to bfloat16 stays well below it
PROMPTS = 16  # rows that the check reads


def merge(base: Path, adapter: Path, data: Path, output: Path) -> dict[str, Any]:
    """Leave the merged model and its tokenizer in `output`; return how far its answers are from base + adapter.

    StageError if a check fails; then the caller keeps nothing.
    """
    tokenizer = AutoTokenizer.from_pretrained(base)
    dtype = AutoConfig.from_pretrained(base).dtype or torch.bfloat16
    texts = _texts(tokenizer, data)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter).eval()
    targeted = {name.removeprefix("base_model.model.") + ".weight" for name in model.targeted_module_names}
    unmerged = _log_probabilities(model, texts)
    merged = model.merge_and_unload().to(dtype)
    merged.save_pretrained(output)
    tokenizer.save_pretrained(output)
    del model, merged

    changed = _changed_tensors(base, output)
    if changed != targeted:
        raise StageError(
            f"the merge changed {len(changed)} tensors, the adapter targets {len(targeted)}; differing: "
            f"{', '.join(sorted(changed ^ targeted)[:5])}."
        )
    reloaded = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32).eval()
    after = _log_probabilities(reloaded, texts)
    divergence = sum(
        float(kl_div(q, p, log_target=True, reduction="none").sum(-1).mean())
        for p, q in zip(unmerged, after, strict=True)
    ) / len(texts)
    agreement = float(
        torch.cat([p.argmax(-1) == q.argmax(-1) for p, q in zip(unmerged, after, strict=True)]).float().mean()
    )
    if not divergence <= KL_LIMIT:
        raise StageError(
            f"the merged model does not answer like base + adapter: mean KL {divergence:.4f} nats, allowed {KL_LIMIT}."
        )
    return {
        "merged_into": str(dtype).removeprefix("torch."),
        "tensors_changed": len(changed),
        "mean_kl_nats": round(divergence, 6),
        "top1_agreement": round(agreement, 4),
        "checked_rows": len(texts),
    }


def _texts(tokenizer: Any, data: Path) -> list[torch.Tensor]:
    """Token ids (1, tokens) of the first held-out rows, or of training rows where none are held out."""
    rows = read_jsonl(data / "held_out.jsonl") or read_jsonl(data / "train.jsonl")
    rendered = (render_pair(tokenizer, row)[0] if "chosen" in row else render(tokenizer, row) for row in rows[:PROMPTS])
    return [torch.tensor([row.input_ids]) for row in rendered]


@torch.inference_mode()
def _log_probabilities(model: Any, texts: list[torch.Tensor]) -> list[torch.Tensor]:
    """Per text the log-probabilities (tokens, vocabulary) in float32."""
    return [log_softmax(model(ids).logits[0].float(), dim=-1) for ids in texts]


def _changed_tensors(before: Path, after: Path) -> set[str]:
    """Names of the tensors whose bytes differ; StageError if the two folders do not hold the same names."""
    old, new = _tensors(before), _tensors(after)
    if old.keys() != new.keys():
        raise StageError(f"merging lost or added tensors: {', '.join(sorted(old.keys() ^ new.keys())[:5])}.")
    return {name for name in old if not torch.equal(_read(old[name], name), _read(new[name], name))}


def _tensors(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as tensors:
            found |= dict.fromkeys(tensors.keys(), shard)
    return found


def _read(shard: Path, name: str) -> torch.Tensor:
    with safe_open(shard, framework="pt") as tensors:
        return tensors.get_tensor(name)
