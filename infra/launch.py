"""Runs a GPU stage in a process of its own, and turns how that process ended into a result or an error.

    run_stage     in the calling thread: starts, streams the log, stops the stage if anything is raised here
      └ supervise     `python -m infra.launch`: a small process that owns everything the stage starts
          └ the stage     `python -m tasks.training job.json`, perhaps below `accelerate launch`

Why a supervisor: nothing may outlive the caller, even if it is killed with SIGKILL. A parent-death signal alone
does not do: Linux sends it when the *thread* that forked ends. Nor does a process group: torchrun puts every
worker into a session of its own. The supervisor looks whose child it is, is the subreaper of all its descendants,
and ends when the last of them has. Linux; on other systems only the process group is ended.
"""

import ctypes
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
from typing import Any

from infra.settings import PROJECT
from infra.stage_process import EXIT_FAILED, EXIT_NOT_STARTED, JSON, hand_over, outcome, split_progress

LOG = "log.txt"
POLL_SECONDS = 0.1
LINGER_SECONDS = 1.0  # for helpers of a stage that has ended, such as multiprocessing's resource tracker
ORPHAN_GRACE_SECONDS = 5.0  # between SIGTERM and SIGKILL when the caller is gone: a step and a small checkpoint
STUCK_SECONDS = 10.0  # after SIGKILL: a process that hangs in a driver is given up
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
) -> dict[str, Any]:
    """Run `python -m <module> <folder>/job.json` and return what it left in result.json.

    `command` stands in for the interpreter, e.g. ["accelerate", "launch", ...]; `env` is laid over this process's.
    Lines go to `on_line` and to log.txt in the folder, "@progress {...}" lines to `on_progress`, all in this thread.
    Whatever is raised in this thread meanwhile sends SIGTERM to the stage, SIGKILL after `grace_seconds`, and is
    raised on when all its processes are gone. A folder holds one stage at a time: another call waits.

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

        code = _run(argv, env=env or {}, lock=lock, grace_seconds=grace_seconds, deliver=deliver, keep=keep)
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


def _run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    lock: int,
    grace_seconds: float,
    deliver: Callable[[str], None],
    keep: Callable[[str], None],
) -> int:
    """Run `argv` under a supervisor until every process of it has ended; its exit code, 128 + signal if killed."""
    supervisor = [sys.executable, "-m", "infra.launch", str(os.getpid()), str(grace_seconds), *argv]
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb", buffering=0) as output:
        try:
            process = subprocess.Popen(
                supervisor,
                cwd=PROJECT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **env},
                stdin=subprocess.DEVNULL,
                stdout=write_end,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # The supervisor holds the reading end too: when this process is gone, a stage that saves its state
                # must not fall over a broken pipe.
                pass_fds=(read_end, lock),
            )
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
    _end_group(process)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _lines(output: int, process: subprocess.Popen[bytes], until: float = math.inf) -> Iterator[str | None]:
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


def _stop(process: subprocess.Popen[bytes], output: int, *, grace_seconds: float, keep: Callable[[str], None]) -> None:
    """Ask the supervisor to end the stage; a second exception here ends it at once."""
    process.terminate()
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


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Finds somebody only if the supervisor itself was killed, or where there are no subreapers."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# --- the supervisor


def supervise(parent: int, grace_seconds: float, argv: Sequence[str]) -> int:
    """Run `argv` until every descendant has ended; its exit code, or 128 + signal.

    SIGTERM, or the end of the process `parent`, passes SIGTERM on and sets a time for SIGKILL; SIGUSR1 means now.
    """
    asked: set[int] = set()
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda got, _frame: asked.add(got))
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        # This process has one thread, which ends with it: here the parent-death signal means what it says.
        stage = subprocess.Popen(argv, preexec_fn=lambda: _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL))
    except OSError as error:
        print(f"cannot start {argv[0]}: {error.strerror}", flush=True)
        return EXIT_NOT_STARTED
    kill_at, is_told, orphan_grace = math.inf, False, min(grace_seconds, ORPHAN_GRACE_SECONDS)
    while True:
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == stage.pid:
                    stage.returncode = os.waitstatus_to_exitcode(ended[1])
        except ChildProcessError:  # nobody is left
            break
        now = time.monotonic()
        is_orphan = os.getppid() != parent
        if (asked or is_orphan) and not is_told:
            is_told, kill_at = True, now + grace_seconds
            os.killpg(0, signal.SIGTERM)
        if stage.returncode is not None and not is_told:
            kill_at = min(kill_at, now + LINGER_SECONDS)
        if is_orphan:
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
        time.sleep(POLL_SECONDS / 5)
    code = EXIT_FAILED if stage.returncode is None else stage.returncode
    return code if code >= 0 else 128 - code


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
    raise SystemExit(supervise(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
