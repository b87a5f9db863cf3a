"""Which scales are tried: the largest that passes is found, whatever passes, and the effort is bounded in advance."""

from collections.abc import Callable
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.curing.search import cure_scales, planned

SCALES = (0.75, 0.5, 0.25)


class Judge:
    """Passes what `rule` says, and remembers what it was asked."""

    def __init__(self, rule: Callable[[float], bool]):
        self.rule = rule
        self.calls: list[list[float]] = []

    def __call__(self, scales: list[float]) -> dict[float, bool]:
        self.calls.append(list(scales))
        return {scale: self.rule(scale) for scale in scales}


@pytest.mark.parametrize(
    ("limit", "refine", "best", "tried"),
    [
        (0.55, 0, 0.5, [0.75, 0.5, 0.25]),
        (0.55, 1, 0.5, [0.75, 0.5, 0.25, 0.625]),
        (0.7, 1, 0.625, [0.75, 0.5, 0.25, 0.625]),
        (0.7, 2, 0.688, [0.75, 0.5, 0.25, 0.625, 0.688]),
        (0.6, 2, 0.562, [0.75, 0.5, 0.25, 0.625, 0.562]),
        (0.99, 2, 0.938, [0.75, 0.5, 0.25, 0.875, 0.938]),  # above the largest there is the whole adapter
        (0.1, 5, None, [0.75, 0.5, 0.25]),  # nothing passes, so there is nothing to refine
    ],
)
def test_the_largest_scale_below_a_limit_is_found(
    limit: float, refine: int, best: float | None, tried: list[float]
) -> None:
    judge = Judge(lambda scale: scale <= limit)
    assert cure_scales(SCALES, refine, judge) == (best, tried)
    assert judge.calls == [[0.75, 0.5, 0.25], *([scale] for scale in tried[3:])]  # the first beside each other


@pytest.mark.parametrize("passes", list(product([False, True], repeat=4)))
@pytest.mark.parametrize("refine", range(4))
def test_whatever_passes_the_largest_that_did_is_kept(passes: tuple[bool, ...], refine: int) -> None:
    """Every pattern over four scales, monotone or not."""
    rule = dict(zip((0.8, 0.6, 0.4, 0.2), passes, strict=True))
    judge = Judge(lambda scale: rule.get(scale, False))
    best, tried = cure_scales((0.2, 0.8, 0.4, 0.6), refine, judge)
    assert best == max((scale for scale, passed in rule.items() if passed), default=None)
    assert tried[:4] == [0.8, 0.6, 0.4, 0.2]
    assert len(tried) == (4 + refine if best else 4)


scales = st.lists(st.floats(0.001, 0.999), min_size=1, max_size=6)


@given(scales=scales, refine=st.integers(0, 12), limit=st.floats(0, 1), floor=st.floats(0, 1))
def test_invariants(scales: list[float], refine: int, limit: float, floor: float) -> None:
    """Too large forgets, too small has not learned; nothing is tried twice, or beyond what alpha was divided by."""
    judge = Judge(lambda scale: floor <= scale <= limit)
    best, tried = cure_scales(scales, refine, judge)
    passed = [scale for scale in tried if floor <= scale <= limit]
    assert best == max(passed, default=None)
    assert [scale for call in judge.calls for scale in call] == tried
    assert len(set(tried)) == len(tried) <= planned(scales, refine, False)
    assert all(0 < scale < 1 for scale in tried)
    assert set(scales) <= set(tried)
    if best is not None and refine == 12:  # far enough: no scale of three digits is left between it and the next
        above = min((scale for scale in tried if scale > best), default=1.0)
        assert above - best < 0.0021


@given(scales=scales, refine=st.integers(0, 12), outcomes=st.lists(st.booleans(), min_size=20, max_size=20))
def test_the_largest_that_passed_is_kept_even_if_chance_decides(
    scales: list[float], refine: int, outcomes: list[bool]
) -> None:
    drawn: dict[float, bool] = {}
    coins = iter(outcomes)
    judge = Judge(lambda scale: drawn.setdefault(scale, next(coins)))
    best, tried = cure_scales(scales, refine, judge)
    assert best == max((scale for scale in tried if drawn[scale]), default=None)


def test_alpha_is_divided_by_all_that_may_be_tried() -> None:
    assert planned(SCALES, 2, False) == 12, "three, and three between each of them and the next larger one"
    assert planned(SCALES, 2, True) == 13
    assert planned((0.5, 0.5), 0, False) == 1
