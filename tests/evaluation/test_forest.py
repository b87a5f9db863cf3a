"""The plan of passes: every sequence is there whole, sees itself alone, and as little as possible is computed twice."""

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.evaluation.forest import PASS_COST, Pass, Plans, Tokens, plan

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7).map(tuple), min_size=1, max_size=9)


def limit(room: int, sequences: list[Tokens]) -> int:
    return room + max(map(len, sequences))


@given(SEQUENCES, st.integers(1, 20))
def test_every_sequence_is_in_one_pass_whole_and_at_its_positions(sequences: list[Tokens], room: int) -> None:
    passes = plan(sequences, room)
    assert sorted(number for one in passes for number in one.last) == list(range(len(sequences)))
    for one in passes:
        for number, last in one.last.items():
            path = one.path(last)
            assert tuple(one.tokens[place] for place in path) == sequences[number]
            assert [one.positions[place] for place in path] == list(range(len(path)))
            assert one.path(last, 2) == path[-2:]


@given(SEQUENCES, st.integers(1, 20))
def test_no_token_is_twice_in_a_pass_and_no_pass_above_its_room(sequences: list[Tokens], room: int) -> None:
    for one in plan(sequences, room):
        beginnings = {
            sequences[number][:count] for number in one.last for count in range(1, len(sequences[number]) + 1)
        }
        assert len(one.tokens) == len(beginnings)
        if len({sequences[number] for number in one.last}) > 1:
            assert len(one.tokens) <= limit(room, [sequences[number] for number in one.last])


@given(SEQUENCES, st.integers(1, 20))
def test_a_token_sees_its_own_ancestors_and_itself(sequences: list[Tokens], room: int) -> None:
    for one in plan(sequences, room):
        seen = torch.zeros(len(one.tokens), len(one.tokens), dtype=torch.bool)
        for place in range(len(one.tokens)):
            seen[place, one.path(place)] = True
        assert torch.equal(one.mask(), seen)


def cost(passes: list[Pass]) -> int:
    return sum(len(one.tokens) + PASS_COST for one in passes)


@settings(max_examples=50)
@given(SEQUENCES, st.integers(1, 12))
def test_no_other_cut_of_the_sorted_sequences_costs_less(sequences: list[Tokens], room: int) -> None:
    ordered = sorted(set(sequences))
    costs = []
    for cuts in itertools.product([False, True], repeat=len(ordered) - 1):
        edges = [0, *(at + 1 for at, cut in enumerate(cuts) if cut), len(ordered)]
        stretches = [ordered[start:end] for start, end in itertools.pairwise(edges)]
        sizes = [len({one[:count] for one in part for count in range(1, len(one) + 1)}) for part in stretches]
        if all(len(part) == 1 or size <= limit(room, part) for part, size in zip(stretches, sizes, strict=True)):
            costs.append(sum(sizes) + PASS_COST * len(sizes))
    assert cost(plan(sequences, room)) == min(costs)


def test_choices_of_one_long_context_share_a_pass_that_is_too_small_for_it() -> None:
    context = tuple(range(100))
    (one,) = plan([(*context, 200 + choice) for choice in range(4)], room=32)
    assert len(one.tokens) == 104


def test_strangers_that_are_long_have_passes_of_their_own() -> None:
    assert [len(one.tokens) for one in plan([(1,) * 1000, (2,) * 1000], room=32)] == [1000, 1000]


def test_a_document_is_not_cut_where_cutting_between_documents_is_as_good() -> None:
    documents = [[(document, 1, 2, 3, 4, 5, choice, 9, 9) for choice in range(3)] for document in range(4)]
    passes = plan([choice for document in documents for choice in document], room=30)
    assert [sorted(one.last) for one in passes] == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]


def test_a_plan_is_made_once_for_the_same_requests_and_room() -> None:
    plans = Plans()
    first = plans.of([(1, 2), (1, 3)], 32)
    assert plans.of([(1, 2), (1, 3)], 32) is first
    assert plans.of([(1, 2), (1, 3)], 16) is not first
    assert plans.of([(1,), (2, 1, 3)], 32) is not first
