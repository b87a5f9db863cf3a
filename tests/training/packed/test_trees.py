"""Losses and gradients of rows that share their beginnings are those of the rows one by one, in float64."""

from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tasks.training.features import Features
from tests.training.packed.exact import gpt2, llama
from tests.training.packed.rows import rows
from tests.training.packed.side_by_side import SideBySide, side_by_side

pytestmark = pytest.mark.usefixtures("exact_norms")

TOLERANCE = 1e-10
# One adapts every layer, the other only some.
LORA: dict[str, dict[str, dict[str, Any]]] = {
    "llama": {"one": {"r": 3}, "other": {"r": 5, "lora_alpha": 4, "target_modules": ("v_proj", "up_proj")}},
    "gpt2": {"one": {"r": 3}, "other": {"r": 5, "lora_alpha": 4, "target_modules": ("c_attn",)}},
}


@pytest.fixture(scope="module", params=["llama", "llama, recomputed", "gpt2", "gpt2, recomputed"])
def engines(request: pytest.FixtureRequest, exact_norms: None) -> SideBySide:
    name, _, recomputed = request.param.partition(", ")
    return side_by_side({"llama": llama, "gpt2": gpt2}[name](), LORA[name], recomputes=bool(recomputed))


@settings(max_examples=8, phases=set(Phase) - {Phase.explain})  # which takes minutes here
@given(one=rows(6), other=rows(6), capacity=st.integers(8, 80))
def test_losses_and_gradients_are_those_of_the_rows_one_by_one(
    engines: SideBySide, one: list[Features], other: list[Features], capacity: int
) -> None:
    of = {"one": one, "other": other}
    engines.assert_equal(of, capacity=capacity, tolerance=TOLERANCE)
    gradients = {name: weights.gradient.clone() for name, weights in engines.weights.items()}
    looked = engines.losses(of, capacity=capacity, trains=False)
    assert all(weights.gradient.equal(gradients[name]) for name, weights in engines.weights.items())
    assert engines.losses(of, capacity=capacity, trains=True) == looked


def test_what_was_shared_was_not_trivial(engines: SideBySide) -> None:
    """The loss hangs on what stands before, and on the adapter: or the test above could not fail."""
    made = ([3, 1, 2, 1], [1, 3, 2, 1], [3, 1, 1, 1])
    rows_of = [{"input_ids": ids, "labels": [-100, -100, -100, 1]} for ids in made]
    seen = [engines.losses({"one": [row]}, capacity=9, trains=False)["one"] for row in rows_of]
    seen.append(engines.losses({"other": rows_of[:1]}, capacity=9, trains=False)["other"])
    assert min(abs(a - b) for at, a in enumerate(seen) for b in seen[:at]) > 1e-3
