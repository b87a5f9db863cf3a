"""The pace beside a loss curve: averages over what lies between its points, and None where nobody looked."""

from typing import Any

import pytest

from tasks.training import curve
from tasks.training.pace import Pace, pace


def log(steps: int) -> list[dict[str, Any]]:
    """A trainer's log in which every step brings 100 tokens, the second one 300, and validation comes after it."""
    entries: list[dict[str, Any]] = [
        {"step": step, "loss": 1.0, "learning_rate": 0.1, "num_tokens": 100 * step + (200 if step > 1 else 0)}
        for step in range(1, steps + 1)
    ]
    return [*entries[:2], {"step": 2, "eval_loss": 1.0}, *entries[2:]]


def note(step: int, seconds: float = 0.5) -> dict[str, float]:
    return {"step": step, "seconds": seconds, "memory_bytes": 1000 + step}


def test_each_step_has_its_own_rate() -> None:
    assert pace(log(3), [note(1), note(2, 2.0), note(3)]) == [
        {"step": 1, "tokens_per_second": 200.0, "memory_bytes": 1001},
        {"step": 2, "tokens_per_second": 150.0, "memory_bytes": 1002},
        {"step": 3, "tokens_per_second": 200.0, "memory_bytes": 1003},
    ]


def test_of_a_thinned_curve_it_is_the_average_since_the_point_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curve, "POINTS", 2)
    points = pace(log(4), [note(step, 1.0) for step in range(1, 5)])
    assert [point["step"] for point in points] == [1, 3, 4]
    assert [point["tokens_per_second"] for point in points] == [100.0, 200.0, 100.0]
    assert [point["step"] for point in points] == [one["step"] for one in curve.curve(log(4)) if "loss" in one]


def test_what_nobody_noted_is_unknown() -> None:
    """After a checkpoint from before there were notes."""
    points = pace(log(3), [note(3)])
    assert [point["tokens_per_second"] for point in points] == [None, None, 200.0]
    assert [point["memory_bytes"] for point in points] == [None, None, 1003]


def test_the_most_memory_is_that_of_all_processes_that_trained_it() -> None:
    """Whoever resumes begins with less than the one before had taken."""
    clock = Pace("cpu")
    clock.notes = [{"step": 1, "seconds": 1.0, "memory_bytes": 2**60}]
    clock.begin()
    clock.note(2)
    assert [each["memory_bytes"] for each in clock.notes] == [2**60, 2**60]
    fresh = Pace("cpu")
    fresh.begin()
    fresh.note(1)
    assert 0 < fresh.notes[0]["memory_bytes"] < 2**60
