"""The same adapters twice: on one shared base, and on a PEFT model each that takes rows one by one."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import pytest
import torch

from tasks.training.features import Features
from tasks.training.packed.shared_base import SharedBase
from tasks.training.packed.weights import AdapterWeights
from tests.training.packed.exact import lora, matrices, mean_loss, new_weights, parts, plain

Rows = Mapping[str, Sequence[Features]]  # by member


@dataclass(frozen=True)
class SideBySide:
    shared: SharedBase
    weights: dict[str, AdapterWeights]
    plain: dict[str, Any] = field(repr=False)

    def losses(self, rows: Rows, *, capacity: int, trains: bool) -> dict[str, float]:
        """Mean loss of each member's rows on the shared base."""
        losses = dict.fromkeys(rows, 0.0)
        hidden = self.shared.hidden
        of_each = (parts(name, some, hidden=hidden, capacity=capacity) for name, some in rows.items())
        for together in zip_longest(*of_each):
            for name, loss in self.shared.losses([one for one in together if one], trains=trains).items():
                losses[name] += loss
        return losses

    def assert_equal(self, rows: Rows, *, capacity: int, tolerance: float) -> None:
        """Losses and gradients of both; `tolerance` is absolute, or relative for what is above 1."""
        for weights in self.weights.values():
            weights.gradient.zero_()
        losses = self.losses(rows, capacity=capacity, trains=True)
        for name, some in rows.items():
            model = self.plain[name]
            model.zero_grad()
            loss = mean_loss(model, some)
            assert losses[name] == pytest.approx(loss.item(), rel=tolerance, abs=tolerance)
            if loss.requires_grad:
                loss.backward()
            for layer, (a, b) in matrices(model).items():
                own = self.weights[name].layers[layer]
                for ours, its in ((own.a, a), (own.b, b)):
                    expected = torch.zeros_like(ours) if its.grad is None else its.grad
                    torch.testing.assert_close(ours.grad, expected, rtol=tolerance, atol=tolerance)


def side_by_side(model: Any, loras: Mapping[str, Mapping[str, Any]], *, recomputes: bool = False) -> SideBySide:
    """`loras` by member, in the keys of a recipe. B does not start at zero: A would have no gradient."""
    settings = {member: lora(**changes) for member, changes in loras.items()}
    weights = {member: new_weights(model, one, seed) for seed, (member, one) in enumerate(settings.items())}
    for seed, one in enumerate(weights.values()):
        one.flat.data.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
    alone = {member: plain(model, one, weights[member]) for member, one in settings.items()}
    layers = {member: one.layers for member, one in weights.items()}
    shared = SharedBase(copy.deepcopy(model), layers, keeps=False, recomputes=recomputes)
    return SideBySide(shared, weights, alone)
