"""The order of rows when those of similar length go together."""

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler


class SeededLengthSampler(LengthGroupedSampler):
    """An order that seed and epoch alone decide, so that it can be resumed.

    transformers draws it from the global random state, which a resumed run has not got at the start of its epoch.
    """

    def __init__(self, batch_size: int, *, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths)
        self._seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.generator = torch.Generator().manual_seed(self._seed + epoch)
