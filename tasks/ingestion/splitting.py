"""The split into rows to train on, rows for the validation loss, and rows held out.

It is by prompt, and prompts that differ only in capitals, white space or the punctuation of sentences count as one:
whoever has seen the one has seen the other. Signs that carry meaning (3 - 4, 3 * 4, C++) make a difference.
"""

import random
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from infra.hashing import digest_json

Row = dict[str, Any]
SENTENCE_MARKS = re.compile(r"[\s.,;:!?¡¿…。、！？\"'“”‘’„«»()\[\]{}`]+")


class Split(NamedTuple):
    train: list[Row]
    validation: list[Row]
    held_out: list[Row]


def split_by_prompt(rows: Sequence[Row], *, held_out: float, validation: float, seed: int) -> Split:
    """No prompt stands on two sides; a share below 1 is a fraction of the distinct prompts, else their number.

    Held-out prompts are drawn first, so that asking for validation rows does not change which they are.
    """
    keys = [_like(_prompt(row)) for row in rows]
    exact: dict[str, str] = {}  # the smallest digest of the prompts that are alike: their place before shuffling
    for row, key in zip(rows, keys, strict=True):
        digest = digest_json(_prompt(row))
        exact[key] = min(digest, exact.get(key, digest))
    prompts = sorted(exact, key=exact.__getitem__)
    random.Random(seed).shuffle(prompts)
    first, second = (
        round(share * len(prompts)) if share < 1 else min(int(share), len(prompts)) for share in (held_out, validation)
    )
    sides = dict.fromkeys(prompts[:first], 2) | dict.fromkeys(prompts[first : first + second], 1)
    split = Split([], [], [])
    for row, key in zip(rows, keys, strict=True):
        split[sides.get(key, 0)].append(row)
    return split


def near_copies(train: Sequence[Row], kept: Sequence[Row]) -> int:
    """How many of the rows kept from training ask what training answers.

    The split leaves no such row, but for one case: the earlier turns of a chat are trained too, and may be the whole
    prompt of another row.
    """
    return len(kept) - len(not_asked(kept, train))


def not_asked(rows: Sequence[Row], train: Sequence[Row]) -> list[Row]:
    """Those of `rows` whose prompt no row of `train` answers, neither at its end nor on the way."""
    answered = {_like(prompt) for row in train for prompt in _answered(row)}
    return [row for row in rows if _like(_prompt(row)) not in answered]


def _prompt(row: Row) -> Any:
    return row["text"] if "text" in row else row["prompt"]


def _answered(row: Row) -> Iterator[Any]:
    prompt = _prompt(row)
    yield prompt
    if isinstance(prompt, list):
        yield from (prompt[:index] for index, message in enumerate(prompt) if message["role"] == "assistant")


def _like(prompt: Any) -> str:
    """The same digest for all prompts that are alike."""
    if isinstance(prompt, str):
        return digest_json(_plainly(prompt))
    return digest_json([[message["role"], _plainly(message["content"])] for message in prompt])


def _plainly(text: str) -> str:
    return SENTENCE_MARKS.sub(" ", text.casefold()).strip() or text  # of marks alone nothing would be left
