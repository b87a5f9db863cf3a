"""The caller's side of infra/warm.py: asks for a stage, and follows its supervisor, which is no child of this process.

Whatever keeps a request from being answered, the stage has not begun then, and the caller starts it in a new process.
"""

import atexit
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from infra.redaction import SECRET_NAMES
from infra.settings import PROJECT

MOST = 2  # warm processes beside one caller; stages of yet other environments start in new processes
# A warm process belongs to one environment: libraries read OMP_NUM_THREADS, HF_HOME and many more when they are
# imported. All of it counts but names that are known to be read later.
READ_LATER = ("AWS_", "PREFECT_", "PYTEST_", "TUNEFLEET_")  # beginnings of names; and whatever bears a secret
# The last one concerns downloads, and lm-eval sets it in every process that imports it, so also in the midst of a flow.
READ_LATER_NAMES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "TENSORBOARD_LOGGING_DIR", "HF_XET_HIGH_PERFORMANCE")
POLL_MILLISECONDS = 100
log = logging.getLogger(__name__)


class Forked:
    """A supervisor, which is not a child of this process, with what launch.py needs of Popen."""

    def __init__(self, pid: int, handle: int, reports: socket.socket):
        self.pid = pid
        self._handle, self._reports = handle, reports
        self._code: int | None = None

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._ended(None if timeout is None else timeout * 1000)
        if code is None:
            raise subprocess.TimeoutExpired("a supervisor", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, number)

    def _ended(self, milliseconds: float | None) -> int | None:
        if self._code is None and _is_ready(self._handle, milliseconds):
            said = b""  # by one that was killed; its stage may live for a moment and hold the other end
            with self._reports, suppress(BlockingIOError):
                said = self._reports.recv(16, socket.MSG_DONTWAIT)
            os.close(self._handle)
            self._code = int(said or -signal.SIGKILL)
        return self._code


def fork(
    argv: Sequence[str],
    *,
    preloaded: Sequence[str],
    env: Mapping[str, str],
    grace_seconds: float,
    held: Sequence[int],
    while_waiting: Callable[[], None],
) -> Forked | None:
    """Start `python -m *argv` in `env` below a warm process that has imported `preloaded`; None if that cannot be.

    `held` is three files: what the stage writes to, and two that only its supervisor holds. `while_waiting` is called
    again and again while the imports last; what it raises withdraws the request.
    """
    late = {
        name: value
        for name, value in env.items()
        if name.startswith(READ_LATER) or name in READ_LATER_NAMES or SECRET_NAMES.search(name)
    }
    door = _door(preloaded, {name: value for name, value in env.items() if name not in late})
    if door is None:
        return None
    reports, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with theirs, os.fdopen(os.memfd_create("request"), "w+") as request:
            json.dump({"argv": list(argv), "env": late, "grace_seconds": grace_seconds}, request)
            request.seek(0)
            socket.send_fds(door, [b"."], [request.fileno(), theirs.fileno(), *held])
        while not _is_ready(reports.fileno(), POLL_MILLISECONDS):
            while_waiting()
        pid, handles, _, _ = socket.recv_fds(reports, 16, 1)
        if pid:
            return Forked(int(pid), handles[0], reports)
        log.warning("the warm process has ended; %s starts in a new one", argv[0])
    except OSError as error:
        log.warning("the warm process cannot be asked (%s); %s starts in a new one", error, argv[0])
    except BaseException:
        reports.close()
        raise
    reports.close()
    return None


_doors: dict[tuple[tuple[str, ...], frozenset[tuple[str, str]]], socket.socket] = {}
_processes: list[subprocess.Popen[bytes]] = []
_starting = threading.Lock()


def _door(preloaded: Sequence[str], env: Mapping[str, str]) -> socket.socket | None:
    """Where the warm process of that environment takes requests; it is started if it is not there yet."""
    key = tuple(preloaded), frozenset(env.items())
    with _starting:
        if key not in _doors and len(_doors) < MOST:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                process = subprocess.Popen(
                    [sys.executable, "-m", "infra.warm", str(os.getpid()), str(theirs.fileno()), *preloaded],
                    cwd=PROJECT,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,  # what libraries say when they are imported is no stage's
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                    pass_fds=[theirs.fileno()],
                )
            _doors[key] = ours
            _processes.append(process)
        return _doors.get(key)


@atexit.register
def end() -> None:
    """End all warm processes of this one; what they have forked goes on."""
    while _doors:
        _doors.popitem()[1].close()
    while _processes:
        process = _processes.pop()
        process.kill()
        process.wait()


def _is_ready(file: int, milliseconds: float | None) -> bool:
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(milliseconds))
