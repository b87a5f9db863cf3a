"""Examples before the question: which training rows are shown, and how they stand in a prompt.

    chat        system message, then each example as turns of user and assistant, then the question
    plain       each example as prompt + completion, a blank line between them, then the question
    preference  as the two above; the example's answer is the chosen one

No example has the prompt of the question that it is shown before: the model would only have to copy the answer.
"""

import random
from collections.abc import Sequence
from typing import Any

from infra.errors import RequestError
from infra.hashing import digest_json

BETWEEN = "\n\n"  # parts plain examples
Row = dict[str, Any]
Prompt = list[dict[str, str]] | str


def draw(train: Sequence[Row], held_out: Sequence[Row], count: int, seed: int) -> list[Row]:
    """`count` training rows in random order, all with prompts of their own, none with the prompt of a held-out row.

    RequestError if there are not so many, or if the rows have no prompt at all.
    """
    if count and any("text" in row for row in train[:1]):
        raise RequestError(
            "the rows are plain text without a question, so no example can be put before one; set num_fewshot to 0, "
            "or give data.prompt and data.completion."
        )
    unseen = {digest_json(row["prompt"]) for row in held_out if "prompt" in row}
    distinct = {digest_json(row["prompt"]): row for row in train if "prompt" in row}
    usable = [row for prompt, row in sorted(distinct.items()) if prompt not in unseen]
    if len(usable) < count:
        raise RequestError(
            f"{count} training rows with different prompts are needed as examples (one more than num_fewshot where "
            f"training rows are asked as well), and there are {len(usable)}; lower num_fewshot or give more rows."
        )
    return random.Random(seed).sample(usable, count)


def with_shots(prompt: Prompt, drawn: Sequence[Row], num_fewshot: int) -> Prompt:
    """`prompt` behind the first `num_fewshot` of the `drawn` rows that do not ask the same."""
    shots = [row for row in drawn if row["prompt"] != prompt][:num_fewshot]
    if isinstance(prompt, str):
        return BETWEEN.join([*(row["prompt"] + _answer(row) for row in shots), prompt])
    turns = [turn for row in shots for turn in [*row["prompt"], *_answer(row)] if turn["role"] != "system"]
    system = [message for message in prompt if message["role"] == "system"]
    return [*system, *turns, *(message for message in prompt if message["role"] != "system")]


def plain_stop(drawn: Sequence[Row]) -> list[str]:
    """What ends an answer to plain text behind examples: the blank line, unless answers have such lines themselves.

    The base was not trained to stop, and would go on with a next question of its own.
    """
    texts = [answer for row in drawn if isinstance(answer := _answer(row), str)]
    return [BETWEEN] if texts and not any(BETWEEN in text.strip() for text in texts) else []


def _answer(row: Row) -> Any:
    return row["completion"] if "completion" in row else row["chosen"]
