"""Many token sequences as a forest: what several of them begin with is computed once.

Answers branch from their question, questions from the few-shot examples before them, the two sentences of a minimal
pair from their first words. The sequences are sorted, so that those that share a beginning are neighbours, and cut
into *passes*: rows of distinct tokens in which each attends to its own ancestors only (tree attention, as in
SpecInfer, https://arxiv.org/abs/2305.09781). What a pass holds depends on the tokens and the room alone, never on a
model, so that all that are compared compute the same passes.
"""

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch

PASS_COST = 16  # tokens whose time a pass takes by itself, whatever it holds: the weights are read once
Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Pass:
    """One row of T distinct tokens, in the order of a walk down each branch before the next: a parent stands first."""

    tokens: list[int]  # (T,)
    parents: list[int]  # (T,) place of the token before; -1 at a beginning
    last: dict[int, int]  # place of the last token of each sequence, by the sequence's number

    @cached_property
    def children(self) -> dict[tuple[int, int], int]:
        """{(place, token that follows): its place}."""
        return {(parent, token): at for at, (parent, token) in enumerate(zip(self.parents, self.tokens, strict=True))}

    @cached_property
    def positions(self) -> list[int]:
        """(T,) How many tokens stand before each in its own sequence."""
        depth: list[int] = []
        for parent in self.parents:
            depth.append(depth[parent] + 1 if parent >= 0 else 0)
        return depth

    def path(self, place: int, count: int | None = None) -> list[int]:
        """Places of the tokens from the beginning up to this one, or of the last `count` of them."""
        places: list[int] = []
        while place >= 0 and len(places) != count:
            places.append(place)
            place = self.parents[place]
        return places[::-1]

    def mask(self) -> torch.Tensor:
        """(T, T) bool: token i sees token j, which is i itself or stands before it in its sequence."""
        end = list(
            range(1, len(self.tokens) + 1)
        )  # what a token is an ancestor of stands directly behind it, up to here
        for at in range(len(self.tokens) - 1, -1, -1):
            if self.parents[at] >= 0:
                end[self.parents[at]] = max(end[self.parents[at]], end[at])
        place = torch.arange(len(self.tokens))
        return (place[:, None] >= place) & (place[:, None] < torch.tensor(end))


def plan(sequences: Sequence[Tokens], room: int) -> list[Pass]:
    """Passes that hold every sequence, cut where the least is computed twice.

    A pass holds at most `room` tokens beside its longest sequence: siblings on a long context share it, and strangers
    that are long each have a pass of their own.
    """
    numbers: dict[Tokens, list[int]] = {}
    for number, sequence in enumerate(sequences):
        numbers.setdefault(sequence, []).append(number)
    ordered = sorted(numbers)
    shared = [0, *(_common(one, next_) for one, next_ in pairwise(ordered))]
    return [
        _pass([(one, numbers[one]) for one in ordered[start:end]], shared[start:end])
        for start, end in _cuts([len(one) for one in ordered], shared, room)
    ]


def _cuts(lengths: list[int], shared: list[int], room: int) -> list[tuple[int, int]]:
    """The stretches (start, end) of the sorted sequences with the least cost in sum, by dynamic programming.

    `shared[k]` is how many tokens sequence k shares with the one before it, which are free unless the cut falls there.
    """
    cost = [0.0] + [float("inf")] * len(lengths)
    came_from = [0] * (len(lengths) + 1)
    for start in range(len(lengths)):
        tokens = longest = 0
        for end in range(start, len(lengths)):
            tokens += lengths[end] - (shared[end] if end > start else 0)
            longest = max(longest, lengths[end])
            if end > start and tokens > longest + room:
                break
            if cost[start] + tokens + PASS_COST < cost[end + 1]:
                cost[end + 1], came_from[end + 1] = cost[start] + tokens + PASS_COST, start
    stretches = []
    end = len(lengths)
    while end:
        stretches.append((came_from[end], end))
        end = came_from[end]
    return stretches[::-1]


def _pass(sequences: list[tuple[Tokens, list[int]]], shared: list[int]) -> Pass:
    tokens: list[int] = []
    parents: list[int] = []
    last: dict[int, int] = {}
    path: list[int] = []  # places of the sequence before
    for at, (sequence, numbers) in enumerate(sequences):
        del path[shared[at] if at else 0 :]
        for token in sequence[len(path) :]:
            parents.append(path[-1] if path else -1)
            path.append(len(tokens))
            tokens.append(token)
        last |= dict.fromkeys(numbers, path[-1])
    return Pass(tokens, parents, last)


def _common(one: Tokens, other: Tokens) -> int:
    """How many tokens both begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class Plans:
    """Plans that were made, so that every adapter on a base finds the base's."""

    def __init__(self) -> None:
        self._made: dict[str, list[Pass]] = {}

    def of(self, sequences: Sequence[Tokens], room: int) -> list[Pass]:
        digest = hashlib.sha256(array("q", [room, len(sequences)]).tobytes())
        for sequence in sequences:
            digest.update(array("q", [len(sequence), *sequence]).tobytes())
        key = digest.hexdigest()
        if key not in self._made:
            self._made[key] = plan(sequences, room)
        return self._made[key]
