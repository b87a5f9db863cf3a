"""The job of a pack, as tasks/training/together.py writes it, from jobs of single trainings."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.ingestion.dataset import build_dataset
from tasks.recipe.schema import Data
from tasks.training import methods, models
from tasks.training.packed import pack

OWN = ("method", "lora", "training", "data", "checkpoints", "output")  # of each member; the rest is the pack's


def pack_job(members: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """One pack of the members' training jobs (tests/training/jobs.py); makes their empty output folders."""
    for one in members.values():
        Path(one["output"]).mkdir(parents=True, exist_ok=True)
    some = next(iter(members.values()))
    return {
        "base": some["base"],
        "base_name": some["base_name"],
        "device": some["device"],
        "quantization": methods.QUANTIZATION[some["method"]],
        "members": [{"name": name, **{key: one[key] for key in OWN}} for name, one in members.items()],
    }


def some_data(folder: Path, *, rows: int = 16, validation: int = 6) -> Path:
    """Chats that begin alike, with answers of different lengths that cannot be guessed."""
    folder.mkdir(parents=True)
    made = tuple({"n": number, "a": f"{number * 7919 % 997:03d}" * (1 + number % 3)} for number in range(rows))
    messages = {"system": "Answer with a number.", "user": "{{ n }}?", "assistant": "{{ a }}"}
    build_dataset(Data(rows=made, held_out=0, validation=validation, messages=messages), folder, needs_held_out=False)
    return folder


def compute_in(patch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """Have both engines load the base in `dtype`."""
    load = partial(models.load_base, dtype=dtype)
    patch.setattr(methods, "load_base", load)
    patch.setattr(pack, "load_base", load)
