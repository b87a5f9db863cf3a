"""Runs a stage in a process of its own, and turns how that process ended into a result or an error.

    run_stage     in the calling thread: starts, streams the log, stops the stage if anything is raised here
      └ the supervisor     infra/supervise.py: a small process that owns everything the stage starts
          └ the stage          `python -m tasks.training job.json`, perhaps below `accelerate launch`

Nothing outlives the caller, even if it is killed with SIGKILL: infra/supervise.py says how. Where the caller allows
it, both are forked from a process that has the stage's libraries imported: infra/warm.py.
"""

import fcntl
import math
import os
import select
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol

from infra import forked
from infra.settings import PROJECT
from infra.stage_process import JSON, hand_over, outcome, split_progress
from infra.supervise import STUCK_SECONDS

LOG = "log.txt"
POLL_SECONDS = 0.1
LONGEST_LINE = 65536  # bytes; progress bars write long ones without an end
KEPT_LINES = 60  # torchrun reports the failure that came first in its last 40 lines
_interrupted: ContextVar[threading.Event | None] = ContextVar("interrupted", default=None)


@contextmanager
def interruption_stops_stages() -> Iterator[None]:
    """Around a flow's body: Ctrl-C or SIGTERM there also stops the stages that run in other threads.

    Python raises these in the main thread only, and Prefect then waits for its worker threads; so each run_stage
    and device_slot called in a copy of this context, as Prefect's workers do, looks whether it happened.
    """
    event = threading.Event()
    token = _interrupted.set(event)
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception):  # KeyboardInterrupt, SystemExit, Prefect's TerminationSignal
            event.set()
        raise
    finally:
        _interrupted.reset(token)


def raise_if_interrupted() -> None:
    """KeyboardInterrupt, as in the main thread: engines count it as a crash, not as a failure to try again."""
    event = _interrupted.get()
    if event and event.is_set():
        raise KeyboardInterrupt("the flow was interrupted")


def run_stage(
    module: str,
    job: Mapping[str, JSON],
    *,
    folder: Path,
    on_line: Callable[[str], None],
    on_progress: Callable[[dict[str, Any]], None] | None = None,
    env: Mapping[str, str] | None = None,
    command: Sequence[str] | None = None,
    grace_seconds: float = 30.0,
    folder_stays: bool = True,
    preloaded: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Run `python -m <module> <folder>/job.json` and return what it left in result.json.

    `command` stands in for the interpreter, e.g. ["accelerate", "launch", ...]; `env` is laid over this process's.
    Lines go to `on_line` and to log.txt in the folder, "@progress {...}" lines to `on_progress`, all in this thread.
    Whatever is raised in this thread meanwhile sends SIGTERM to the stage, SIGKILL after `grace_seconds`, and is
    raised on when all its processes are gone. A folder holds one stage at a time: another call waits.

    With `preloaded`, names of modules that the stage will import, it is forked from a process that has done so and
    serves all such calls. Only for stages that use no GPU; not with a `command`, and only on Linux.

    An error says how to run the stage again by hand, unless the caller removes the folder: `folder_stays` False.

    Raises RequestError, PreemptedError, DivergedError, OutOfMemoryError, or StageError for any other end.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    tail: deque[str] = deque(maxlen=KEPT_LINES)
    with _sole_use(folder, on_line) as lock, (folder / LOG).open("w", encoding="utf-8", buffering=1) as log:
        argv = [*(command or [sys.executable]), "-m", module, str(hand_over(job, folder))]

        def keep(line: str) -> None:
            log.write(line + "\n")
            tail.append(line)

        def deliver(line: str) -> None:
            text, event = split_progress(line)
            if event is None or text.strip():
                keep(text)
                on_line(text)
            if event is not None and on_progress:
                on_progress(event)

        is_plain = argv[:2] == [sys.executable, "-m"] and sys.platform == "linux"
        code = _run(
            argv,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            preloaded=preloaded if is_plain else None,
            lock=lock,
            grace_seconds=grace_seconds,
            deliver=deliver,
            keep=keep,
        )
    rerun = f"cd {shlex.quote(str(PROJECT))} && {shlex.join(argv)}"
    if env:  # names only: values may be secrets
        rerun += f"   (with {', '.join(sorted(env))} in the environment)"
    return outcome(code, stage=module, folder=folder, log=list(tail), rerun=rerun if folder_stays else "")


@contextmanager
def _sole_use(folder: Path, on_line: Callable[[str], None]) -> Iterator[int]:
    """The folder's lock. The supervisor inherits it, so a try whose caller was killed keeps it to its very end."""
    with (folder / ".lock").open("w") as file:
        waiting = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waiting:
                    on_line(f"waiting for the stage that still runs in {folder}")
                waiting = True
                time.sleep(POLL_SECONDS)
                raise_if_interrupted()
        yield file.fileno()


class Process(Protocol):
    """A supervisor: a child, by Popen, or one that a warm process has forked."""

    pid: int

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, number: int, /) -> None: ...


def _run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    preloaded: Sequence[str] | None,
    lock: int,
    grace_seconds: float,
    deliver: Callable[[str], None],
    keep: Callable[[str], None],
) -> int:
    """Run `argv` under a supervisor until every process of it has ended; its exit code, 128 + signal if killed."""
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb", buffering=0) as output:
        # The supervisor holds the reading end too: when this process is gone, a stage that saves its state must not
        # fall over a broken pipe.
        held = (write_end, read_end, lock)
        process: Process | None = None
        try:
            if preloaded is not None:
                process = forked.fork(
                    argv[2:],
                    preloaded=preloaded,
                    env=env,
                    grace_seconds=grace_seconds,
                    held=held,
                    while_waiting=raise_if_interrupted,
                )
            process = process or _start(argv, env=env, grace_seconds=grace_seconds, held=held)
        finally:
            os.close(write_end)
        try:
            for line in _lines(output.fileno(), process):
                raise_if_interrupted()
                if line is not None:
                    deliver(line)
        except BaseException:
            _stop(process, output.fileno(), grace_seconds=grace_seconds, keep=keep)
            raise
    code = _end_group(process)
    return code if code >= 0 else 128 - code


def _start(
    argv: Sequence[str], *, env: Mapping[str, str], grace_seconds: float, held: tuple[int, int, int]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "infra.supervise", str(os.getpid()), str(grace_seconds), *argv],
        cwd=PROJECT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=held[0],
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=held[1:],
    )


def _lines(output: int, process: Process, until: float = math.inf) -> Iterator[str | None]:
    """What the stage prints, until the supervisor has ended, whoever still holds the pipe; or until time `until`.

    None after POLL_SECONDS of silence: then exceptions that another thread sends into this one arrive.
    """
    ready = select.poll()
    ready.register(output, select.POLLIN)
    rest = b""
    while time.monotonic() < until:
        has_ended = process.poll() is not None
        chunk = os.read(output, LONGEST_LINE) if ready.poll(0 if has_ended else POLL_SECONDS * 1000) else b""
        if not chunk:
            if has_ended:
                break
            if ready.poll(0):  # end of file: the supervisor is about to end
                time.sleep(POLL_SECONDS / 10)
            yield None
            continue
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > LONGEST_LINE:
            lines, rest = [*lines, rest], b""
        yield from map(_as_shown, lines)
    if rest:
        yield _as_shown(rest)


def _as_shown(line: bytes) -> str:
    """What a terminal would show of a line: a carriage return starts it over."""
    return line.rstrip(b"\r").rsplit(b"\r", 1)[-1].decode(errors="replace")


def _stop(process: Process, output: int, *, grace_seconds: float, keep: Callable[[str], None]) -> None:
    """Ask the supervisor to end the stage; a second exception here ends it at once."""
    process.send_signal(signal.SIGTERM)
    try:
        # A stage whose output nobody reads would block in a print instead of saving its state.
        for line in _lines(output, process, until=time.monotonic() + grace_seconds + STUCK_SECONDS):
            if line is not None:
                keep(line)
    finally:
        process.send_signal(signal.SIGUSR1)  # no more grace; nothing if the supervisor has ended
        with suppress(subprocess.TimeoutExpired):
            process.wait(STUCK_SECONDS)
        _end_group(process)


def _end_group(process: Process) -> int:
    """Finds somebody only if the supervisor itself was killed, or where there are no subreapers."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()
