"""The engine's contract: a pack ends in the weights in which its members end that are trained alone, plainly.

Plainly is PEFT's model, one row at a time, torch's AdamW and clipping, and transformers' schedule, in float64. So all
that is left between the two is rounding, and any slip in a mask, a weight of a loss, a gradient's owner, a rate or the
order of rows is larger than that by many orders.
"""

import copy
import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.nn.utils import clip_grad_norm_
from transformers import get_scheduler

from tasks.recipe.schema import Training
from tasks.training.features import Features
from tasks.training.packed.layout import trained_tokens
from tasks.training.packed.member import Member
from tasks.training.packed.pack import Pack
from tasks.training.packed.shared_base import SharedBase
from tasks.training.rendering import IGNORED
from tests.training.packed.exact import VOCABULARY, gpt2, llama, lora, matrices, mean_loss, new_weights, plain

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("exact_norms")]

TOLERANCE = 1e-10
LORAS: dict[str, list[dict[str, Any]]] = {
    "llama": [
        {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"},
        {"r": 4, "lora_alpha": 16, "target_modules": ("q_proj", "v_proj"), "init_lora_weights": "gaussian"},
        {"r": 8, "lora_alpha": 2, "target_modules": ("down_proj",), "layers_to_transform": (1,)},
        {"r": 3, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False, "use_rslora": True},
    ],
    "gpt2": [
        {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"},
        {"r": 4, "lora_alpha": 16, "target_modules": ("c_attn",), "init_lora_weights": "gaussian"},
        {"r": 8, "lora_alpha": 2, "target_modules": ("c_fc",), "layers_to_transform": (1,)},
        {"r": 3, "lora_alpha": 8, "target_modules": ("c_proj",), "init_lora_weights": False, "use_rslora": True},
    ],
}
# They end after 5, 9, 14 and 20 steps; the last windows of their epochs are short; every one is clipped at times.
TRAININGS: list[dict[str, Any]] = [
    {"learning_rate": 1e-2, "max_steps": 5, "per_device_train_batch_size": 4, "seed": 3, "max_grad_norm": 0.5},
    {"learning_rate": 3e-3, "num_train_epochs": 2.25, "per_device_train_batch_size": 2, "weight_decay": 0.1,
     "gradient_accumulation_steps": 2, "lr_scheduler_type": "cosine", "warmup_steps": 3},
    {"learning_rate": 2e-2, "max_steps": 14, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 3,
     "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.3, "seed": 7, "max_grad_norm": 0.1},
    {"learning_rate": 5e-3, "max_steps": 20, "per_device_train_batch_size": 3, "lr_scheduler_type": "constant",
     "weight_decay": 0.01, "seed": 3},
]  # fmt: skip
ROWS = (11, 13, 8, 10)
STEPS = (5, 9, 14, 20)


def some_rows(count: int, seed: int) -> list[Features]:
    """Of 4 to 14 tokens, under one of three beginnings, with some labels before the answer too."""
    draw = random.Random(seed)
    starts = [[draw.randrange(VOCABULARY) for _ in range(draw.randint(2, 8))] for _ in range(3)]
    made = []
    for _ in range(count):
        start, answer = draw.choice(starts), [draw.randrange(VOCABULARY) for _ in range(draw.randint(2, 6))]
        labels = [token if draw.random() < 0.2 else IGNORED for token in start] + answer
        made.append({"input_ids": start + answer, "labels": labels})
    return made


def windows(rows: Sequence[Features], training: dict[str, Any]) -> Iterator[list[Features]]:
    """The rows of each optimizer step, from accelerate's own sampler."""
    rows_per_step = training["per_device_train_batch_size"] * training["gradient_accumulation_steps"]
    sampler = SeedableRandomSampler(rows, data_seed=training["seed"])
    while True:  # its epoch moves on by itself
        order = list(sampler)
        for start in range(0, len(order), rows_per_step):
            yield [rows[number] for number in order[start : start + rows_per_step]]


def train_alone(model: Any, rows: Sequence[Features], training: dict[str, Any], steps: int) -> list[dict[str, float]]:
    """Train PEFT's `model` in place; the log."""
    parameters = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=training["learning_rate"], weight_decay=training["weight_decay"])
    warmup = training["warmup_steps"]
    warmup = int(warmup) if warmup >= 1 else math.ceil(warmup * steps)
    schedule = get_scheduler(
        training["lr_scheduler_type"], optimizer, num_warmup_steps=warmup, num_training_steps=steps
    )
    log: list[dict[str, float]] = []
    tokens = 0
    for step, window in zip(range(1, steps + 1), windows(rows, training), strict=False):
        loss = mean_loss(model, window)
        loss.backward()
        norm = clip_grad_norm_(parameters, training["max_grad_norm"])
        rate = schedule.get_last_lr()[0]
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        tokens += sum(len(row["input_ids"]) for row in window)
        log.append({"step": step, "loss": loss.item(), "learning_rate": rate, "grad_norm": norm.item(),
                    "num_tokens": tokens})  # fmt: skip
    return log


@pytest.mark.parametrize(("name", "make"), [("llama", llama), ("gpt2", gpt2)])
def test_a_pack_ends_where_its_members_end_alone(name: str, make: Callable[[], Any], tmp_path: Path) -> None:
    model = make()
    trainings = [Training(**one, logging_steps=50).model_dump(mode="json") for one in TRAININGS]
    rows = [some_rows(count, seed) for seed, count in enumerate(ROWS)]
    assert all(len(set(map(trained_tokens, some))) > 1 for some in rows), "or a mean over rows is one over tokens"
    settings = [lora(**one) for one in LORAS[name]]
    weights = [new_weights(model, one, training["seed"]) for one, training in zip(settings, trainings, strict=True)]
    alone = [plain(model, one, its) for one, its in zip(settings, weights, strict=True)]
    members = [
        Member({"name": f"m{number}", "checkpoints": tmp_path / f"m{number}", "training": training}, its, own, [],
               vocabulary=VOCABULARY, device="cpu")
        for number, (training, its, own) in enumerate(zip(trainings, weights, rows, strict=True))
    ]  # fmt: skip
    layers = {one.name: one.weights.layers for one in members}
    Pack(SharedBase(copy.deepcopy(model), layers, keeps=False, recomputes=False), members).run()

    for member, its, own, training, steps in zip(members, alone, rows, trainings, STEPS, strict=True):
        assert (member.ended, member.step) == ("done", steps)
        start = {layer: [one.detach().clone() for one in pair] for layer, pair in matrices(its).items()}
        log = train_alone(its, own, training, steps)
        assert any(entry["grad_norm"] > training["max_grad_norm"] for entry in log), "or clipping was not tried"
        assert [list(entry) for entry in member.log] == [list(entry) for entry in log]
        for entry, expected in zip(member.log, log, strict=True):
            assert entry == pytest.approx(expected, rel=0, abs=TOLERANCE)
        for layer, pair in matrices(its).items():
            adaptation = member.weights.layers[layer]
            for ours, plainly, begun in zip((adaptation.a, adaptation.b), pair, start[layer], strict=True):
                torch.testing.assert_close(ours.data, plainly.data, rtol=0, atol=TOLERANCE)
                assert not torch.allclose(plainly, begun, rtol=0, atol=1e-4), "it was trained"
