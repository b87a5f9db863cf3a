"""Small real things to merge: adapters with random weights, and rows to ask about."""

import json
from pathlib import Path
from typing import Any

import torch

from tasks.recipe.schema import Lora
from tasks.training.models import add_adapter, load_base


def save_adapter(base: Path, folder: Path, *, seed: int = 5, std: float = 0.05, **lora: Any) -> Path:
    """PEFT's files of an adapter whose B is random, too."""
    torch.manual_seed(seed)
    settings = {"r": 4, "target_modules": ("q_proj", "v_proj"), **lora}
    model = add_adapter(load_base(base, "none", "cpu"), Lora(**settings).model_dump())
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=std)
    model.save_pretrained(folder)
    return folder


def save_rows(folder: Path, count: int = 3) -> Path:
    """A data artifact's files with `count` held-out rows."""
    rows = [
        {
            "id": str(number),
            "prompt": [{"role": "user", "content": f"Q{number}"}],
            "completion": [{"role": "assistant", "content": "ok"}],
        }
        for number in range(count)
    ]
    folder.mkdir()
    (folder / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "train.jsonl").write_text("")
    return folder
