"""The supervisor of a stage: a small process that owns everything the stage starts.

    python -m infra.supervise <pid of the caller> <grace seconds> python -m tasks.training job.json

Why: nothing may outlive the caller, even if it is killed with SIGKILL. A parent-death signal alone does not do: Linux
sends it when the *thread* that forked ends. Nor does a process group: torchrun puts every worker into a session of
its own. The supervisor looks whether its caller is still there, is the subreaper of all its descendants, and ends
when the last of them has. Linux; on other systems only the process group is ended.

infra/warm.py forks supervisors that do the same, from a process that has the stage's libraries imported.
"""

import ctypes
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from infra.stage_process import EXIT_FAILED, EXIT_NOT_STARTED

POLL_SECONDS = 0.02
LINGER_SECONDS = 1.0  # for helpers of a stage that has ended, such as multiprocessing's resource tracker
ORPHAN_GRACE_SECONDS = 5.0  # between SIGTERM and SIGKILL when the caller is gone: a step and a small checkpoint
STUCK_SECONDS = 10.0  # after SIGKILL: a process that hangs in a driver is given up
ASKING = (signal.SIGTERM, signal.SIGUSR1)


def become_supervisor() -> set[int]:
    """To be called before the stage is started; returns the set of the signals that will have come."""
    asked: set[int] = set()
    for number in ASKING:
        signal.signal(number, lambda got, _frame: asked.add(got))
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    return asked


def end_with_parent() -> None:
    """In the stage. Its supervisor has one thread, which ends with it: here this signal means what it says."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def supervise(stage: int, asked: set[int], *, is_orphan: Callable[[], bool], grace_seconds: float) -> int:
    """Wait until every descendant has ended; the exit code of the child `stage`, or 128 + signal.

    SIGTERM, or the end of the caller, passes SIGTERM on and sets a time for SIGKILL; SIGUSR1 means now.
    """
    code: int | None = None
    kill_at, is_told, orphan_grace = math.inf, False, min(grace_seconds, ORPHAN_GRACE_SECONDS)
    while True:
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == stage:
                    code = os.waitstatus_to_exitcode(ended[1])
        except ChildProcessError:  # nobody is left
            break
        now = time.monotonic()
        is_alone = is_orphan()
        if (asked or is_alone) and not is_told:
            is_told, kill_at = True, now + grace_seconds
            os.killpg(0, signal.SIGTERM)
        if code is not None and not is_told:
            kill_at = min(kill_at, now + LINGER_SECONDS)
        if is_alone:
            kill_at = min(kill_at, now + orphan_grace)
        if signal.SIGUSR1 in asked:
            kill_at = min(kill_at, now)
        if now >= kill_at:
            for pid in _descendants():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if now >= kill_at + STUCK_SECONDS:
            print(f"gave up on processes that SIGKILL does not end: {_descendants()}", flush=True)
            break
        time.sleep(POLL_SECONDS)
    if code is None:
        return EXIT_FAILED
    return code if code >= 0 else 128 - code


def main(parent: int, grace_seconds: float, argv: Sequence[str]) -> int:
    asked = become_supervisor()
    try:
        stage = subprocess.Popen(argv, preexec_fn=end_with_parent)
    except OSError as error:
        print(f"cannot start {argv[0]}: {error.strerror}", flush=True)
        return EXIT_NOT_STARTED
    stage.returncode = 0  # keeps Popen from waiting for it, too
    return supervise(stage.pid, asked, is_orphan=lambda: os.getppid() != parent, grace_seconds=grace_seconds)


_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _descendants() -> list[int]:
    """Every process below this one, also those in sessions of their own."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # ended meanwhile
            # "pid (name) state ppid ...", and the name may hold anything
            parent = int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found, unseen = [], [os.getpid()]
    while unseen:
        below = children.get(unseen.pop(), [])
        found += below
        unseen += below
    return found


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
