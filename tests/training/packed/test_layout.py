"""Rows as branches: nothing of a row is lost or added by computing what it shares once."""

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.training.features import Features
from tasks.training.packed.layout import Block, blocks_of, common_prefix, passes_of, trained_tokens
from tasks.training.rendering import IGNORED
from tests.training.packed.rows import rows

HIDDEN = 64


def paths(block: Block) -> list[list[int]]:
    """For each leaf of the block the places of its ancestors and itself, as attention sees them."""
    places = range(len(block.ids))
    seen = [[j for j in places if j <= i < block.reach[j]] for i in places]
    inner = {j for path in seen for j in path[:-1]}
    return [path for i, path in enumerate(seen) if i not in inner]


def walked(blocks: Sequence[Block]) -> Counter[tuple[tuple[int, ...], int]]:
    """How often each label is asked for behind each beginning of a row."""
    found: Counter[tuple[tuple[int, ...], int]] = Counter()
    for block in blocks:
        for place, label, count in block.labels:
            before = tuple(block.ids[j] for j in range(place + 1) if place < block.reach[j])
            found[before, label] += count
    return found


def wanted(some: Sequence[Features]) -> Counter[tuple[tuple[int, ...], int]]:
    return Counter(
        (tuple(row["input_ids"][:at]), label)
        for row in some
        for at, label in enumerate(row["labels"])
        if at and label != IGNORED
    )


@given(rows(), st.integers(1, 60), st.booleans())
def test_every_label_is_predicted_from_what_stands_before_it_in_its_row(
    some: list[Features], capacity: int, shares: bool
) -> None:
    blocks = blocks_of(some, HIDDEN, capacity=capacity, shares=shares)
    assert walked(blocks) == wanted(some)
    assert sum(walked(blocks).values()) == sum(map(trained_tokens, some))


@given(rows(), st.integers(1, 60), st.booleans())
def test_every_row_is_there_and_its_positions_count_from_its_start(
    some: list[Features], capacity: int, shares: bool
) -> None:
    blocks = blocks_of(some, HIDDEN, capacity=capacity, shares=shares)
    leaves = set()
    for block in blocks:
        assert len(block.ids) == len(block.positions) == len(block.reach)
        assert all(place < reach <= len(block.ids) for place, reach in enumerate(block.reach))
        for path in paths(block):
            assert [block.positions[j] for j in path] == list(range(len(path)))
            leaves.add(tuple(block.ids[j] for j in path))
    beginnings = {leaf[:count] for leaf in leaves for count in range(1, len(leaf) + 1)}
    all_of_them = {tuple(row["input_ids"]) for row in some}
    assert leaves <= all_of_them <= beginnings, "who is the beginning of another row may be no leaf of its own"


@given(rows(), st.integers(1, 60), st.booleans())
def test_a_block_is_no_larger_than_a_pass_unless_it_is_one_row(
    some: list[Features], capacity: int, shares: bool
) -> None:
    lengths = {len(row["input_ids"]) for row in some}
    for block in blocks_of(some, HIDDEN, capacity=capacity, shares=shares):
        assert len(block.ids) <= capacity or (len(block.ids) in lengths and len(paths(block)) == 1)
        if block.is_causal:
            assert set(block.reach) == {len(block.ids)}, "then no mask is made"


@given(rows(), st.integers(1, 60))
def test_sharing_computes_no_beginning_twice_in_a_block_and_not_sharing_all(
    some: list[Features], capacity: int
) -> None:
    total = sum(len(row["input_ids"]) for row in some)
    assert sum(len(block.ids) for block in blocks_of(some, HIDDEN, capacity=capacity, shares=False)) == total
    for block in blocks_of(some, HIDDEN, capacity=capacity):
        nodes = [tuple(block.ids[j] for j in range(i + 1) if i < block.reach[j]) for i in range(len(block.ids))]
        assert len(set(nodes)) == len(nodes)


@given(rows(), st.integers(1, 60))
def test_not_sharing_keeps_every_row_whole(some: list[Features], capacity: int) -> None:
    there: Counter[tuple[int, ...]] = Counter()
    for block in blocks_of(some, HIDDEN, capacity=capacity, shares=False):
        starts = [place for place, position in enumerate(block.positions) if position == 0]
        for start, stop in zip(starts, [*starts[1:], len(block.ids)], strict=True):
            there[tuple(block.ids[start:stop])] += 1
            assert block.reach[start:stop] == [stop] * (stop - start)
    assert there == Counter(tuple(row["input_ids"]) for row in some)


@given(rows(), st.integers(1, 60), st.integers(1, 60))
def test_passes_keep_the_order_and_are_as_few_as_it_allows(some: list[Features], capacity: int, room: int) -> None:
    blocks = blocks_of(some, HIDDEN, capacity=capacity)
    passes = passes_of(blocks, room)
    assert [block for one in passes for block in one] == blocks
    sizes = [sum(len(block.ids) for block in one) for one in passes]
    assert all(size <= room or len(one) == 1 for size, one in zip(sizes, passes, strict=True))
    for one, size, following in zip(passes, sizes, passes[1:], strict=False):
        assert one and size + len(following[0].ids) > room


def test_a_tree_written_out() -> None:
    made = [[7, 1, 2], [7, 1, 3], [7, 4], [7, 1, 2]]
    some: list[Features] = [{"input_ids": ids, "labels": [IGNORED, *ids[1:]]} for ids in made]
    (block,) = blocks_of(some, HIDDEN, capacity=100)
    assert block.ids == [7, 1, 2, 3, 4]
    assert block.positions == [0, 1, 2, 2, 1]
    assert block.reach == [5, 4, 3, 4, 5]
    assert set(block.labels) == {(0, 1, 3), (1, 2, 2), (1, 3, 1), (0, 4, 1)}
    assert not block.is_causal


@pytest.mark.parametrize(
    ("one", "other", "count"), [([], [1], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 2], 2), ([2], [1], 0)]
)
def test_common_prefix(one: list[int], other: list[int], count: int) -> None:
    assert common_prefix(one, other) == common_prefix(other, one) == count
