"""The warm process: it has imported what stages need, and forks them for its caller, so that they start at once.

    the caller             infra/forked.py sends requests; the first one for an environment starts
      └ the warm process       `python -m infra.warm`, which ends with its caller, and forks for each request
          └ the supervisor         in a session of its own, as in infra/supervise.py, which forks
              └ the stage              what `python -m tasks.training job.json` does after its imports

Importing torch, transformers, peft and their like takes many a stage longer than its work, and every stage of a flow
does it anew. Here it is done once. What a fork could carry along is kept out:

- Settings that libraries read when they are imported: a warm process belongs to one environment (infra/forked.py). It
  never sees credentials: a request is read by the process that was forked for it.
- Threads: only the forking one lives on. A warm process that has others after its imports gives up.
- Random numbers: Python seeds its own anew, numpy's are seeded here, torch's begin at the same number in every process.
  Only the order of sets, which hangs on the seed of str.__hash__, is the same for all that one warm process forks.
- A GPU's context, which no fork survives: callers ask only where no GPU can be seen.
- Code of this project: a stage reads it when it starts, as in a new process.
"""

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from infra.supervise import ASKING, become_supervisor, end_with_parent, supervise

# Threads that may be lost: without its own, jemalloc (in pyarrow) returns memory when more is asked for.
DISPENSABLE = ("jemalloc_bg_thd",)
FILES = 5  # of a request: itself, where to report, and three that the stage's processes hold


def serve(caller: int, door: socket.socket, preloaded: Sequence[str]) -> list[str]:
    """Fork for each request until the caller has ended; returns in the stages only: the argv of each."""
    its_end = os.pidfd_open(caller)
    if os.getppid() != caller:  # too late: that was another process of the same number
        os._exit(0)
    for name in preloaded:
        if _is_over(its_end):
            os._exit(0)
        with suppress(ImportError):  # the stage will say so, if it needs it
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # else the next collection in a stage would write to, and so copy, every page
    _end_threads()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # what is forked needs no waiting for
    news = select.poll()
    news.register(door, select.POLLIN)
    news.register(its_end, select.POLLIN)
    while news.poll() and not _is_over(its_end):
        message, files, _, _ = socket.recv_fds(door, 1, FILES)
        if not message:
            break
        if os.fork() == 0:
            door.close()
            return _started(its_end, *files)
        for file in files:
            os.close(file)
    os._exit(0)


def _is_over(process: int) -> bool:
    ended = select.poll()
    ended.register(process, select.POLLIN)
    return bool(ended.poll(0))


def _end_threads() -> None:
    """OpenBLAS ends its threads at a fork, and starts others in who needs them. Of the rest, any would be lost."""
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    tasks = Path("/proc/self/task").iterdir()
    if any(task.name != str(os.getpid()) and (task / "comm").read_text().strip() not in DISPENSABLE for task in tasks):
        os._exit(1)


def _started(caller: int, request: int, reports: int, output: int, *others: int) -> list[str]:
    """Become the supervisor of one request, and never return but in its stage."""
    os.setsid()
    os.dup2(output, sys.stdout.fileno())
    os.dup2(output, sys.stderr.fileno())
    os.close(output)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with os.fdopen(request) as text:
        asked_for: dict[str, Any] = json.load(text)
    os.environ.update(asked_for["env"])  # what is not in this process's; and what imports have set there stays
    asked = become_supervisor()
    to_caller, handle = socket.socket(fileno=reports), os.pidfd_open(os.getpid())
    try:
        socket.send_fds(to_caller, [str(os.getpid()).encode()], [handle])
    except OSError:  # withdrawn
        os._exit(0)
    signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)  # none may come to the stage while it has this process's handlers
    stage = os.fork()
    if stage == 0:
        end_with_parent()
        to_caller.close()
        for file in (caller, handle, *others):
            os.close(file)
        for number in ASKING:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
    if stage == 0:
        if random := sys.modules.get("numpy.random"):
            random.seed()
        return list(asked_for["argv"])
    # The caller is gone when its process is, or when it has hung up without taking the handle.
    gone = select.poll()
    gone.register(caller, select.POLLIN)
    gone.register(to_caller, 0)
    seconds = asked_for["grace_seconds"]
    code = supervise(stage, asked, is_orphan=lambda: bool(gone.poll(0)), grace_seconds=seconds)
    with suppress(OSError):
        to_caller.send(str(code).encode())
    os._exit(code)


if __name__ == "__main__":
    sys.argv = serve(int(sys.argv[1]), socket.socket(fileno=int(sys.argv[2])), sys.argv[3:])
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
