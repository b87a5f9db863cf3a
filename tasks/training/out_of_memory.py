"""Running out of memory: half the adapters in one process, and for one that is alone half the rows per forward pass.

So an adapter fails for want of memory only when it is alone and at the floor of its recipe.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from infra.errors import KilledError, OutOfMemoryError, TunefleetError

Facts = dict[str, Any]
Outcome = Facts | TunefleetError  # the figures of a training, or why it came to nothing
T = TypeVar("T")


def in_halves(
    names: Sequence[str], attempt: Callable[[Sequence[str]], dict[str, Outcome]], *, tell: Callable[..., None]
) -> dict[str, Outcome]:
    """What came of each of `names`: trained by one `attempt`, or by one for each half where that takes too much memory.

    What ends an attempt is the outcome of all that it trained, and of no other.
    """
    try:
        return attempt(names)
    except TunefleetError as error:
        if len(names) == 1 or not isinstance(error, OutOfMemoryError):
            return dict.fromkeys(names, error)
    first, second = names[: len(names) // 2], names[len(names) // 2 :]
    tell("out of memory with %s together; going on with %s, then %s", *map(", ".join, (names, first, second)))
    return in_halves(first, attempt, tell=tell) | in_halves(second, attempt, tell=tell)


def within_memory(
    attempt: Callable[[Facts], Facts], training: Facts, *, saved_step: Callable[[int], int], tell: Callable[..., None]
) -> Facts:
    """The figures of `attempt`, with `out_of_memory_at`: the batch sizes that did not fit.

    Rows per optimizer step stay what the recipe says: half the batch, twice the accumulation. OutOfMemoryError at the
    floor, `min_per_device_train_batch_size`, or where the batch is odd. `saved_step` of a batch: see `unless_killed`.
    """
    too_large: list[int] = []
    while True:
        batch, accumulation = training["per_device_train_batch_size"], training["gradient_accumulation_steps"]
        try:
            facts = unless_killed(partial(attempt, training), saved=partial(saved_step, batch), tell=tell)
            return {**facts, "out_of_memory_at": too_large}
        except OutOfMemoryError as error:
            floor = training["min_per_device_train_batch_size"]
            if batch % 2 or batch // 2 < floor:
                raise OutOfMemoryError(
                    f"batches of {batch} rows do not fit, and smaller ones are not allowed "
                    f"(min_per_device_train_batch_size: {floor}{', and the batch is odd' if batch % 2 else ''}). Take "
                    f"gradient_checkpointing: true, method: qlora, a lower max_length or a smaller base. {error}"
                ) from error
            tell("out of memory with %d rows per forward pass; starting again with %d", batch, batch // 2)
            too_large.append(batch)
            training = {
                **training,
                "per_device_train_batch_size": batch // 2,
                "gradient_accumulation_steps": 2 * accumulation,
            }


def unless_killed(attempt: Callable[[], T], *, saved: Callable[[], Any], tell: Callable[..., None]) -> T:
    """What `attempt` returns. A process that was killed may have been killed by anybody: it goes on from where it was.

    KilledError, which counts as running out of memory, only if it is killed again and `saved`, which says how far its
    checkpoints are, shows that it had not got further.
    """
    before: Any = None
    while True:
        try:
            return attempt()
        except KilledError:
            reached = saved()
            if reached == before:
                raise
            before = reached
            tell("killed; going on with the same, after step %s", reached)
