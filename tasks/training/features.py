"""Rows as the trainer takes them: finished tokens, from the one rendering."""

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.training.rendering import render, render_pair

Features = dict[str, list[int]]  # token ids by column


def features(tokenizer: Any, rows: Sequence[dict[str, Any]]) -> list[Features]:
    """input_ids and labels, or prompt_ids, chosen_ids and rejected_ids for preference pairs."""
    if "chosen" not in rows[0]:
        return [render(tokenizer, row).features() for row in rows]
    pairs = [render_pair(tokenizer, row) for row in rows]
    return [
        {"prompt_ids": chosen.prompt_ids, "chosen_ids": chosen.answer_ids, "rejected_ids": rejected.answer_ids}
        for chosen, rejected in pairs
    ]


def sequences(row: Mapping[str, list[int]]) -> list[list[int]]:
    """What goes through the model for this row: one sequence of tokens, or two that begin alike."""
    if "input_ids" in row:
        return [row["input_ids"]]
    return [row["prompt_ids"] + row["chosen_ids"], row["prompt_ids"] + row["rejected_ids"]]


def length(row: Mapping[str, list[int]]) -> int:
    """Tokens of the longest one."""
    return max(map(len, sequences(row)))
