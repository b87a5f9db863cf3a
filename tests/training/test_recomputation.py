"""Whose memory a job counts when it decides whether to recompute: what its processes on this machine share."""

from pathlib import Path

import pytest

from tasks.training.memory import estimate
from tasks.training.models import add_adapter, meta_base
from tasks.training.recomputation import _is_called_for
from tests.tiny import save_tiny_base
from tests.training.jobs import training_job

ROWS = [{"input_ids": list(range(32)), "completion_mask": [0] * 16 + [1] * 16}]


@pytest.mark.parametrize(
    ("on_this_machine", "room_for", "is_called_for"),
    [
        (None, 3, True),  # no launcher has said: all four are here
        ("4", 3, True),
        ("2", 3, False),  # of four on two machines
        ("8", 5, False),  # left over from another launcher
    ],
)
def test_processes_share_the_memory_of_their_own_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_this_machine: str | None, room_for: int, is_called_for: bool
) -> None:
    base = save_tiny_base(tmp_path / "base")
    job = training_job(base, tmp_path, tmp_path, accelerate={"num_processes": 4}, per_device_train_batch_size=64)
    one = estimate(
        add_adapter(meta_base(base), job["lora"]),
        method=job["method"],
        training=job["training"],
        longest_row=32,
        gradient_checkpointing=False,
        device="cpu",
        num_processes=4,
        config="ddp",
    ).total
    if on_this_machine is None:
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    else:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", on_this_machine)
    monkeypatch.setattr("tasks.training.recomputation.free_memory", lambda: room_for * one)
    assert _is_called_for(job, ROWS) is is_called_for
