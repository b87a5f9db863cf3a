"""Dropout that can be drawn again: from seed, step and layer alone, the same forwards, backwards and recomputed."""

import copy

import pytest
import torch

from tasks.training.features import Features
from tasks.training.packed.linear import Adaptation, _dropped
from tasks.training.packed.passing import Span
from tasks.training.packed.shared_base import SharedBase
from tests.training.packed.exact import llama, lora, mean_loss, new_weights, parts, plain

ROWS: list[Features] = [
    {"input_ids": [3, 1, 4, 1, 5, 9, 2, 6], "labels": [-100, -100, -100, 1, 5, 9, 2, 6]},
    {"input_ids": [3, 1, 4, 1, 7, 8, 2], "labels": [-100, -100, -100, 1, 7, 8, 2]},
]
DROPPING = lora(r=4, lora_dropout=0.3)


class Dropping:
    """One member with dropout on the tiny Llama, in float64."""

    def __init__(self, *, seed: int = 0, recomputes: bool = False):
        model = llama()
        self.weights = new_weights(model, DROPPING, seed)
        self.weights.flat.data.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
        self.alone = plain(model, DROPPING, self.weights).eval()
        layers = {"one": self.weights.layers}
        self.base = SharedBase(copy.deepcopy(model), layers, keeps=False, recomputes=recomputes)

    def loss(self, draw: int, *, trains: bool = False) -> float:
        self.weights.gradient.zero_()
        (part,) = parts("one", ROWS, hidden=32, capacity=64, draw=draw, shares=False)
        return self.base.losses([part], trains=trains)["one"]


@pytest.fixture(scope="module")
def dropping() -> Dropping:
    return Dropping()


def test_draws_hang_on_step_and_seed_and_on_nothing_else(dropping: Dropping) -> None:
    seen = [dropping.loss(draw) for draw in (0, 1, 2, 4096)] + [Dropping(seed=1).loss(0)]
    assert len(set(seen)) == len(seen)
    torch.manual_seed(5)
    assert [dropping.loss(draw) for draw in (0, 1)] == seen[:2]
    assert Dropping().loss(1) == seen[1], "whatever was drawn before it"


@pytest.mark.usefixtures("exact_norms")
def test_the_gradient_is_that_of_what_was_drawn(dropping: Dropping) -> None:
    """A step along a direction moves the loss by what the gradient says: so the backward drops what the forward did."""
    dropping.loss(3, trains=True)
    gradient, flat = dropping.weights.gradient.clone(), dropping.weights.flat.data
    before = flat.clone()
    direction = torch.randn(flat.shape, dtype=flat.dtype, generator=torch.Generator().manual_seed(1))
    losses = []
    for step in (1e-5, -1e-5):
        flat.copy_(before + step * direction)
        losses.append(dropping.loss(3))
    flat.copy_(before)
    assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(float(gradient @ direction), rel=1e-6)


def test_recomputed_activations_drop_the_same(dropping: Dropping) -> None:
    recomputing = Dropping(recomputes=True)
    assert recomputing.loss(3, trains=True) == dropping.loss(3, trains=True)
    torch.testing.assert_close(recomputing.weights.gradient, dropping.weights.gradient, rtol=0, atol=1e-12)
    assert dropping.weights.gradient.abs().max() > 1e-3


@pytest.mark.usefixtures("exact_norms")
def test_without_a_draw_nothing_is_dropped(dropping: Dropping) -> None:
    expected = mean_loss(dropping.alone, ROWS).item()
    assert dropping.loss(-1) == pytest.approx(expected, abs=1e-10)
    assert abs(dropping.loss(0) - expected) > 1e-3


def test_each_number_is_kept_with_the_same_chance_and_scaled() -> None:
    none = torch.nn.Parameter(torch.zeros(1))
    layers = [Adaptation(none, none, 1.0, 0.25, seed) for seed in (1, 2)]
    ones = torch.ones(400, 50)
    seen = [_dropped(ones, Span("one", 0, 400, draw=7), one) for one in layers]
    for some in seen:
        assert some.unique().tolist() == pytest.approx([0, 1 / 0.75])
        assert float(some.mean()) == pytest.approx(1, abs=0.02), "four standard errors"
    both = (seen[0] * seen[1] > 0).float().mean()
    assert float(both) == pytest.approx(0.75**2, abs=0.02), "layers draw apart"
