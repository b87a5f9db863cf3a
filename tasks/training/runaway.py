"""A loss that ran away: the guard that both engines have, and how it names the rows."""

import math
from collections.abc import Callable, Sequence

from infra.errors import DivergedError
from tasks.training import curve
from tasks.training.curve import Log

RUNAWAY_STEPS = 3  # steps in a row with a runaway loss that end the job
SHOWN_ROWS = 8


def check(log: Log, vocabulary: int, where: Callable[[], str]) -> None:
    """DivergedError if the losses that were just logged show that training is lost."""
    first, last = curve.first_and_last_losses(log, RUNAWAY_STEPS)
    # A uniform guess has log(vocabulary); twice that, and twice the start, is no noise of small batches.
    limit = max(2 * math.log(vocabulary), 2 * first)
    if len(last) == RUNAWAY_STEPS and min(last) > limit:
        raise DivergedError(
            f"the loss ran away: {first:.3g} at the first step, above {limit:.3g} for {RUNAWAY_STEPS} steps, "
            f"{last[-1]:.3g} {where()}"
        )


def where(step: int, rate: float, rows: Sequence[str]) -> str:
    """The end of a sentence that says where it happened, and what to do."""
    names = sorted(set(rows))
    more = f" and {len(names) - SHOWN_ROWS} more" if len(names) > SHOWN_ROWS else ""
    return (
        f"at step {step}, learning rate {rate:.3g}, rows {', '.join(names[:SHOWN_ROWS])}{more}. Lower learning_rate "
        "or max_grad_norm, or look at these rows."
    )
