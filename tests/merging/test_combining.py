"""Combining agrees with PEFT's own functions on dense updates, and refuses wrong arguments all at once."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils.merge_utils import task_arithmetic, ties

from infra.errors import RequestError
from tasks.merging.combining import combine
from tasks.merging.deltas import Added, Delta, LowRank

SHAPE = (12, 10)
WEIGHT = torch.randn(SHAPE, generator=torch.Generator().manual_seed(9))


def low_rank(seed: int, rank: int, magnitude: bool = False) -> LowRank:
    random = torch.Generator().manual_seed(seed)
    left, right = torch.randn(SHAPE[0], rank, generator=random), torch.randn(rank, SHAPE[1], generator=random)
    return LowRank(left, right, 0.7, torch.rand(SHAPE[0], generator=random) + 0.5 if magnitude else None)


@st.composite
def adapters(draw: st.DrawFn) -> list[dict[str, Delta]]:
    count, seed = draw(st.integers(1, 4)), draw(st.integers(0, 1000))
    return [{"w": low_rank(10 * seed + n, draw(st.integers(1, 5)), draw(st.booleans()))} for n in range(count)]


def updates(deltas: list[dict[str, Delta]]) -> list[torch.Tensor]:
    return [adapter["w"].difference(WEIGHT) for adapter in deltas]


@settings(max_examples=50, deadline=None)
@given(adapters(), st.data())
def test_linear_is_pefts_task_arithmetic(deltas: list[dict[str, Delta]], data: st.DataObject) -> None:
    shares = [data.draw(st.floats(0.1, 2)) for _ in deltas]
    expected = task_arithmetic(updates(deltas), torch.tensor(shares))
    combined = combine(deltas, weights=shares, method="linear")["w"]
    assert torch.allclose(combined.difference(WEIGHT), expected, atol=1e-5)
    assert torch.allclose(combined.apply(WEIGHT), WEIGHT + expected, atol=1e-5)
    part = combined.rows(3, 7)
    assert part is not None and torch.allclose(part.apply(WEIGHT[3:7]), (WEIGHT + expected)[3:7], atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(adapters(), st.data(), st.floats(0.02, 1))
def test_ties_is_pefts(deltas: list[dict[str, Delta]], data: st.DataObject, density: float) -> None:
    shares = [data.draw(st.floats(0.1, 2)) for _ in deltas]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of density 1
        expected = ties(updates(deltas), torch.tensor(shares), density)
    found = combine(deltas, weights=shares, method="ties", density=density)["w"]
    assert torch.allclose(found.difference(WEIGHT), expected, atol=1e-5)
    assert found.rows(0, 1) is None  # what is trimmed depends on the whole tensor


def test_ties_lets_the_stronger_sign_win() -> None:
    said = [{"w": Added(torch.tensor([3.0, -1.0, 0.1]))}, {"w": Added(torch.tensor([1.0, 2.0, 0.1]))}]
    found = combine(said, weights=[1, 1], method="ties", density=0.67)["w"].difference(torch.zeros(3))
    assert found.tolist() == [2.0, 2.0, 0.0]  # mean of both; the second alone; trimmed away


def test_dare_keeps_the_expected_update_and_drops_the_rest() -> None:
    update = torch.ones(400, 500)
    found = combine([{"w": Added(update)}], weights=[2], method="dare", density=0.25)["w"]
    values = found.difference(torch.zeros(400, 500))
    assert set(values.unique().tolist()) == {0.0, 8.0}
    assert abs(float(values.mean()) - 2) < 0.05 and abs(float((values > 0).float().mean()) - 0.25) < 0.01


def test_dares_choice_rests_on_seed_name_and_place_alone() -> None:
    ones = {"w": Added(torch.ones(SHAPE)), "v": Added(torch.ones(SHAPE))}

    def drawn(name: str, seed: int, before: int = 0) -> torch.Tensor:
        torch.manual_seed(before)
        torch.rand(before)
        return combine([ones], weights=[1], method="dare", seed=seed)[name].difference(torch.zeros(SHAPE))

    assert torch.equal(drawn("w", 1), drawn("w", 1, before=5))
    assert not torch.equal(drawn("w", 1), drawn("w", 2)) and not torch.equal(drawn("w", 1), drawn("v", 1))
    both = combine([ones, ones], weights=[1, -1], method="dare")["w"].difference(torch.zeros(SHAPE))
    assert both.count_nonzero()  # two adapters do not lose the same values


def test_dare_at_density_1_is_linear() -> None:
    deltas = [{"w": low_rank(1, 2)}, {"w": low_rank(2, 3)}]
    dare = combine(deltas, weights=[1, 0.5], method="dare", density=1)["w"]
    linear = combine(deltas, weights=[1, 0.5], method="linear")["w"]
    assert torch.equal(dare.apply(WEIGHT), linear.apply(WEIGHT)) and dare.rows(0, 1) is None


@pytest.mark.parametrize("method", ["linear", "ties", "dare"])
def test_an_adapter_that_leaves_a_tensor_alone(method: str) -> None:
    deltas: list[dict[str, Delta]] = [{"w": low_rank(1, 2)}, {"v": low_rank(2, 2)}]
    combined = combine(deltas, weights=[1, 3], method=method, density=1)
    assert set(combined) == {"w", "v"}
    assert torch.allclose(combined["w"].difference(WEIGHT), deltas[0]["w"].difference(WEIGHT), atol=1e-6)
    assert torch.allclose(combined["v"].difference(WEIGHT), 3 * deltas[1]["v"].difference(WEIGHT), atol=1e-5)


def test_the_updates_are_not_altered() -> None:
    update = torch.full(SHAPE, 2.0)
    for method in ("linear", "ties", "dare"):
        combine([{"w": Added(update)}], weights=[1], method=method)["w"].apply(WEIGHT.clone())
    assert (update == 2).all()


def test_all_faults_at_once() -> None:
    with pytest.raises(RequestError) as caught:
        combine([{}], weights=[0, float("nan")], method="slerp", density=0)
    said = str(caught.value)
    assert len(caught.value.faults) == 5
    for part in ("2 weights for 1 adapters", "weight 0 is", "weight nan is", "method 'slerp'", "density 0"):
        assert part in said
