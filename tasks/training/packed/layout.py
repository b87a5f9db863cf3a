"""What goes through the model at once: rows as branches of what they have in common, each token computed once.

    rows of one optimizer step -> sorted by their tokens -> blocks -> passes

A block is a run of tokens under one mask: a tree of rows, its common prefixes first, or several such trees. Its tokens
stand in the order of a depth-first walk, so all that follow from a token stand right behind it, up to its `reach`;
position i attends to position j exactly if j <= i < reach[j]. Positions count from the row's own start.

What a row is computed with does not change what comes out of it, so the seed's order of rows and their grouping into
optimizer steps stay as they are: rows are only brought together that the same step holds anyway.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tasks.training.features import Features
from tasks.training.rendering import IGNORED

# What a layer spends, in the time that one token takes it: on a block as such, and on a pair of tokens under its mask,
# the latter times the hidden size. Rough figures of a 135M Llama on two cores with AMX; they decide speed, not results.
BLOCK_COST = 8.0
PAIR_COST = 1.0


@dataclass(frozen=True)
class Block:
    """Tokens under one mask; all sequences but the labels have one entry a token."""

    ids: list[int]
    positions: list[int]  # of each token in its row
    reach: list[int]  # one past the last token that attends to this one
    labels: list[tuple[int, int, int]]  # (token that predicts, id to predict, rows that ask for it)
    is_causal: bool  # whether every token attends to all before it, as in a single row


def blocks_of(rows: Sequence[Features], hidden: int, *, capacity: int, shares: bool = True) -> list[Block]:
    """The rows as blocks of at most `capacity` tokens, or of one row; `shares` is whether prefixes are computed once.

    A row joins the block of its neighbour in sorted order where that costs less than a block of its own.
    """
    ordered = sorted(rows, key=lambda row: row["input_ids"])
    groups: list[list[Features]] = []
    size = 0
    before: list[int] = []
    for row in ordered:
        ids = row["input_ids"]
        common = common_prefix(before, ids) if shares and groups else 0
        grown = size + len(ids) - common
        joined = _cost(grown, hidden) - _cost(size, hidden)
        if groups and grown <= capacity and joined < BLOCK_COST + _cost(len(ids), hidden):
            groups[-1].append(row)
            size = grown
        else:
            groups.append([row])
            size = len(ids)
        before = ids
    return [_block(group, shares=shares) for group in groups]


def passes_of(blocks: Sequence[Block], capacity: int) -> list[list[Block]]:
    """The blocks in as few passes as their order allows, each of at most `capacity` tokens, or of one block."""
    passes: list[list[Block]] = []
    size = 0
    for block in blocks:
        if not passes or size + len(block.ids) > capacity:
            passes.append([])
            size = 0
        passes[-1].append(block)
        size += len(block.ids)
    return passes


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that both begin with."""
    count = 0
    for own, its in zip(one, other, strict=False):
        if own != its:
            break
        count += 1
    return count


def _cost(tokens: int, hidden: int) -> float:
    return tokens + PAIR_COST * tokens * tokens / hidden


def _block(rows: Sequence[Features], *, shares: bool) -> Block:
    """`rows` are sorted, so what a row has in common with any before it, it has in common with the last."""
    ids: list[int] = []
    positions: list[int] = []
    reach: list[int] = []
    wanted: dict[tuple[int, int], int] = {}
    path: list[int] = []  # where the tokens of the last row stand
    for number, row in enumerate(rows):
        own = row["input_ids"]
        common = common_prefix([ids[place] for place in path], own) if shares and number else 0
        for place in path[common:]:
            reach[place] = len(ids)
        path = path[:common] + list(range(len(ids), len(ids) + len(own) - common))
        ids += own[common:]
        positions += range(common, len(own))
        reach += [0] * (len(own) - common)
        for place, label in _predictions(path, row["labels"]):
            wanted[place, label] = wanted.get((place, label), 0) + 1
    for place in path:
        reach[place] = len(ids)
    labels = [(place, label, count) for (place, label), count in wanted.items()]
    return Block(ids, positions, reach, labels, is_causal=len(rows) == 1)


def _predictions(path: Sequence[int], labels: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(place of the token before, label) of each label that counts; the first token of a row has none before it."""
    return ((path[at - 1], label) for at, label in enumerate(labels) if at and label != IGNORED)


def trained_tokens(row: Features) -> int:
    """Labels of the row that count in its loss."""
    return sum(label != IGNORED for label in row["labels"][1:])
