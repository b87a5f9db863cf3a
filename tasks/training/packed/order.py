"""Which rows each optimizer step of one member takes: what TRL's trainer takes under the same seed, in the same order.

Every epoch has its own shuffle, which seed and epoch alone decide; so step number N can be asked for at any time, and a
training that goes on after a crash needs to remember nothing but N.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tasks.training.features import Features, length
from tasks.training.sampling import SeededLengthSampler
from tasks.training.schedule import steps_per_epoch


class RowOrder:
    """The windows of rows over which one optimizer step accumulates."""

    def __init__(self, rows: Sequence[Features], training: Mapping[str, Any]):
        self.rows = rows
        self.rows_per_step = training["per_device_train_batch_size"] * training["gradient_accumulation_steps"]
        self.steps_per_epoch = steps_per_epoch(len(rows), training)
        self._seed = training["seed"]
        self._lengths = [length(row) for row in rows] if training["group_by_length"] else None
        self._epoch, self._shuffled = -1, [0]

    def window(self, step: int) -> list[int]:
        """Numbers of the rows of optimizer step `step`, counted from 0; the last window of an epoch may be short."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._shuffled = epoch, self._shuffle(epoch)
        return self._shuffled[within * self.rows_per_step : (within + 1) * self.rows_per_step]

    def _shuffle(self, epoch: int) -> list[int]:
        if self._lengths is not None:
            sampler = SeededLengthSampler(self.rows_per_step, lengths=self._lengths, seed=self._seed)
            sampler.set_epoch(epoch)
            return list(sampler)
        generator = torch.Generator().manual_seed(self._seed + epoch)  # as accelerate's SeedableRandomSampler
        return torch.randperm(len(self.rows), generator=generator).tolist()
