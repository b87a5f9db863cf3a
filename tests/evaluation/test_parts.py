"""Parts of a task: every document in exactly one, in an order that is drawn once and for all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.evaluation.parts import slice_of


@given(count=st.integers(0, 300), parts=st.integers(1, 10), name=st.text(max_size=5))
def test_parts_are_disjoint_nearly_equal_and_together_the_task(count: int, parts: int, name: str) -> None:
    slices = [slice_of(count, (number, parts), name) for number in range(1, parts + 1)]
    assert sorted(number for one in slices for number in one) == list(range(count))
    sizes = [len(one) for one in slices]
    assert max(sizes) - min(sizes) <= 1


def test_a_part_is_a_random_sample_and_always_the_same() -> None:
    first = slice_of(1000, (1, 4), "task")
    assert first == slice_of(1000, (1, 4), "task") != slice_of(1000, (1, 4), "other task")
    assert 0.2 < sum(number < 500 for number in first) / 500 < 0.8 and 400 < sum(first) / len(first) < 600
    assert sorted(first)[:5] == [0, 4, 7, 9, 14]  # other documents would be another look at stored scores


@pytest.mark.parametrize("number", [0, 4])
def test_parts_are_numbered_from_one(number: int) -> None:
    with pytest.raises(ValueError, match="numbered from 1 to 3"):
        slice_of(10, (number, 3), "task")
