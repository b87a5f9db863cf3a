"""Parts of a task: its documents in a fixed random order, cut into slices that are scored one after the other.

"Until decided" looks at the slices in turn. Each is a random sample of the task, the same for every side, and together
they are the task: each document once, with the prompt that it has where all are asked.

lm-eval's own `samples=` is not used: it numbers the documents anew, takes an empty list for all of them, and draws
other few-shot examples, because it draws them in the order of the documents that it asks.
"""

from collections.abc import Iterator
from random import Random
from typing import Any

ORDER_SEED = 7  # of the order; another seed would be another sample


def slice_of(count: int, part: tuple[int, int], name: str) -> set[int]:
    """Which of a task's first `count` documents part (k, K) holds, k from 1 to K; sizes differ by one at most."""
    number, parts = part
    if not 1 <= number <= parts:
        raise ValueError(f"part {number} of {parts}: parts are numbered from 1 to {parts}")
    order = list(range(count))
    Random(f"{ORDER_SEED}/{name}").shuffle(order)
    return set(order[count * (number - 1) // parts : count * number // parts])


def ask_only(task: Any, kept: set[int]) -> None:
    """Make an lm-eval task build the requests of all its documents, as ever, and then ask only those in `kept`."""
    build, every = task.build_all_requests, task.doc_iterator

    def build_all_requests(**options: Any) -> None:
        build(**options)
        task._instances = [one for one in task.instances if one.doc_id in kept]
        task.doc_iterator = doc_iterator

    def doc_iterator(**options: Any) -> Iterator[tuple[int, Any]]:
        return ((number, document) for number, document in every(**options) if number in kept)

    task.build_all_requests = build_all_requests
