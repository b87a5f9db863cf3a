"""Every error that Tunefleet raises on purpose, in one tree, each with the exit code it ends a command with.

0 done, 2 the request is wrong, 3 some gate did not pass, 1 anything else (130, interrupted, is the shell's).
Only `TransientError` and its children are worth another try: a wrong recipe, a full memory or a failed gate
stay what they are however often they are tried.
"""

from collections.abc import Sequence
from dataclasses import dataclass


class TunefleetError(Exception):
    """Something went wrong that this project foresaw."""

    exit_code = 1


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a request: what was got, what is allowed, what to do; and where it stands."""

    message: str
    where: str | None = None  # "file:line key", as far as it is known

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class RequestError(TunefleetError):
    """The recipe, the arguments or the input data are wrong; carries every fault that was found."""

    exit_code = 2

    def __init__(self, faults: str | Fault | Sequence[Fault]):
        if isinstance(faults, str):
            faults = Fault(faults)
        self.faults: tuple[Fault, ...] = (faults,) if isinstance(faults, Fault) else tuple(faults)
        super().__init__("\n".join(map(str, self.faults)))


class GateNotPassed(TunefleetError):
    """A release was asked for a digest that has no PASS."""

    exit_code = 3


class IntegrityError(TunefleetError):
    """Stored bytes do not match the digest that names them."""


class StaleWriterError(TunefleetError):
    """Another writer took over this piece of work; what this one has must not be completed."""


class StageError(TunefleetError):
    """A stage's process ended without a result."""


class OutOfMemoryError(StageError):
    """The device or the machine ran out of memory, or the kernel killed the process for it."""


class KilledError(OutOfMemoryError):
    """The process was killed (SIGKILL) by somebody else: as a rule the kernel, for want of memory."""


class DivergedError(StageError):
    """The loss became NaN or infinite."""


class TransientError(TunefleetError):
    """May go through when tried again: network, a busy service, a preempted process."""


class PreemptedError(StageError, TransientError):
    """The process was asked to stop (SIGTERM) before it was done."""
