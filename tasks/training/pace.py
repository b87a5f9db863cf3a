"""How long each step took and what memory it left used: beside the loss curve, not in it.

The curve is the same after a crash as without one; a clock never is. The notes are part of every checkpoint.
"""

import resource
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tasks.training.curve import Log, training_points

Note = dict[str, float]  # {"step", "seconds" (of this step), "memory_bytes"}


class Pace:
    """Notes of the steps so far, by whoever trains them. Asking the clock and the allocator changes no training."""

    def __init__(self, device: str):
        self.device = device
        self.notes: list[Note] = []
        self._begun: float | None = None

    def begin(self) -> None:
        self._begun = time.perf_counter()

    def note(self, step: int) -> None:
        """After the step's loss was read, so that a GPU has finished it; before it is validated or saved."""
        if self._begun is not None:
            seconds = round(time.perf_counter() - self._begun, 6)
            before = self.notes[-1]["memory_bytes"] if self.notes else 0  # of another process, if this one resumed
            most = max(before, peak_memory(self.device))
            self.notes.append({"step": step, "seconds": seconds, "memory_bytes": most})
            self._begun = None


def peak_memory(device: str) -> int:
    """Bytes, the most so far: of the device as torch allocated it, or of this process."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def pace(log: Log, notes: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    """{"step", "tokens_per_second", "memory_bytes"} of the curve's points; None where a step on the way has no note.

    The rate is that of all steps since the point before, so that a thinned curve is an average and not a sample.
    """
    by_step = {int(note["step"]): note for note in notes}
    points, before, tokens_before = [], 0, 0
    for point in training_points(log):
        step, tokens = int(point["step"]), int(point["tokens"])
        spent = [by_step[at]["seconds"] if at in by_step else None for at in range(before + 1, step + 1)]
        known = sum(each for each in spent if each is not None) if None not in spent else 0
        points.append(
            {
                "step": step,
                "tokens_per_second": round((tokens - tokens_before) / known, 1) if known else None,
                "memory_bytes": by_step[step]["memory_bytes"] if step in by_step else None,
            }
        )
        before, tokens_before = step, tokens
    return points
