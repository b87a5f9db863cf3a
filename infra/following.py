"""The machines of a job besides machine 0: they do what its stages ask of them, until its flow has ended.

`lead` runs the flow on machine 0 and tells the others when it is over, and how; `follow` is what those do. If machine
0 is gone without a word, or has ended before they came, they wait for it: whoever started the job ends it as a whole
(an indexed job of Kubernetes by its success policy if pod 0 ended well, else by its back-off limit; srun by
`--kill-on-bad-exit` and `--wait`).
"""

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from queue import Empty, Queue
from threading import Event
from typing import Any, TypeAlias

from infra.conducting import faults_of
from infra.errors import KilledError, RequestError
from infra.json_lines import POLL_SECONDS, Inbox, Line, door
from infra.launch import interruption_stops_stages, raise_if_interrupted
from infra.rendezvous import Nodes
from infra.stage_process import EXIT_SIGKILL, exit_code

RETRY_SECONDS = 1.0
CONNECT_SECONDS = 5.0
END_SECONDS = 90.0  # for the others to hear that the flow has ended; one may still be ending a stage
Work: TypeAlias = Callable[[dict[str, Any], Callable[[], None]], object]


class Dismissed(BaseException):
    """Machine 0 has ended this stage, or is gone. No Exception: it interrupts, and is nobody's failure."""


def lead(crew: Nodes, command: Sequence[str]) -> int:
    """Run `command` on machine 0; its exit code, 128 + signal if it was killed, which the others hear too."""
    process = subprocess.Popen(command)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _frame: process.send_signal(got))
    code = process.wait()
    code = code if code >= 0 else 128 - code
    with suppress(TimeoutError):
        _tell_the_end(crew, code, until=time.monotonic() + END_SECONDS)
    return code


def _tell_the_end(crew: Nodes, code: int, *, until: float) -> None:
    inbox: Inbox = Queue()
    untold = set(range(1, crew.count))
    with door(crew.port, until=until) as entrance:
        while untold and time.monotonic() < until:
            with suppress(TimeoutError):
                Line(entrance.accept()[0], inbox)
            with suppress(Empty):
                line, message = inbox.get(timeout=POLL_SECONDS)
                line.say(end=code)
                untold.discard((message or {}).get("rank"))


def follow(crew: Nodes, work: Work) -> int:
    """Do each job that machine 0 has, until it says that its flow has ended; the flow's exit code.

    `work(job, ready)` gets ready, calls `ready`, which returns when all machines are, and does the job.
    """
    while True:
        inbox: Inbox = Queue()
        line = _reach(crew, inbox)
        line.say(rank=crew.rank, count=crew.count)
        _, message = inbox.get()
        try:
            if message is None:  # it was busy with another stage, and that has ended
                time.sleep(RETRY_SECONDS)
            elif "end" in message:
                return int(message["end"])
            elif "refused" in message:
                raise RequestError(f"{message['refused']}; all machines of a job get the same NNODES.")
            else:
                line.say(ended=_attend(line, inbox, message["job"], work))
                inbox.get()  # machine 0 closes the line
        except Dismissed:
            print("machine 0 ended the stage", flush=True)
        finally:
            line.close()


def _reach(crew: Nodes, inbox: Inbox) -> Line:
    """Machine 0 listens while it has a stage for all. Its name may not be known before it runs."""
    print(f"machine {crew.rank} of {crew.count}: waiting for {crew.address}:{crew.port}", flush=True)
    while True:
        try:
            return Line(socket.create_connection((crew.address, crew.port), timeout=CONNECT_SECONDS), inbox)
        except OSError:
            time.sleep(RETRY_SECONDS)


def _attend(line: Line, inbox: Inbox, job: dict[str, Any], work: Work) -> dict[str, Any]:
    """How `work` ended; Dismissed, when it has been stopped, if machine 0 closes the line."""
    start = Event()

    def ready() -> None:
        line.say(ready=True)
        while not start.wait(POLL_SECONDS):
            raise_if_interrupted()

    with ThreadPoolExecutor(1) as pool, interruption_stops_stages():
        done = pool.submit(copy_context().run, work, job, ready)
        while not done.done():
            with suppress(Empty):
                _, message = inbox.get(timeout=POLL_SECONDS)
                if message is None:
                    raise Dismissed
                start.set()
    error = done.exception()
    if error is None:
        return {"code": 0, "error": "", "faults": []}
    code = EXIT_SIGKILL if isinstance(error, KilledError) else exit_code(error)  # or it would be memory for certain
    first_line = next(iter(str(error).splitlines()), "")  # the report below it stands in this machine's own log
    return {"code": code, "error": f"{type(error).__name__}: {first_line}", "faults": faults_of(error)}
