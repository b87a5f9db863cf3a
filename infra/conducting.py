"""One stage on all machines of a job, started together and ended together.

   machine 0    the flow -> run_stage -> `python -m infra.conducting LAUNCHER -m tasks.x job.json`    (conduct)
   the others   infra/following.py: connect, get the job, be ready, start, say how it ended, connect again

1. Every machine of a job runs the same command, tasks/training/node.py, which runs the flow on machine 0 only.
2. A stage of that flow that is to run on all machines has `conduct` before its launcher. It waits for the others at
   MASTER_PORT and sends them job.json. They need no common disk: what the job reads comes from the store.
3. Having the port is the lock: of several such stages one runs at a time, with all machines to itself.
4. The launchers start when all machines are ready (base and data are there, devices are free). From then on the
   processes talk to each other as torch does, at MASTER_PORT + 1; the connection to `conduct` stays, as a sign of life.
5. One machine fails, or is lost: its processes' sockets close, which ends the others' processes; those that still
   hang after OTHERS_SECONDS are ended. The stage then ends as a whole, for the reason of the machine that had one.
6. Nothing is kept between stages: a machine that was started anew connects again, and is there for the next stage.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Empty, Queue
from socket import socket
from types import FrameType
from typing import Any

from infra.errors import Fault, PreemptedError, TunefleetError
from infra.json_lines import POLL_SECONDS, Inbox, Line, door
from infra.rendezvous import Nodes, nodes
from infra.stage_process import (
    EXIT_DIVERGED,
    EXIT_FAILED,
    EXIT_OUT_OF_MEMORY,
    EXIT_PREEMPTED,
    EXIT_REQUEST,
    EXIT_SIGKILL,
    FAULTS,
    OUTCOME,
    exit_code,
    write_json,
)

WAIT_SECONDS = 600.0  # for the other machines to connect: to be scheduled, and to pull an image
READY_SECONDS = 3600.0  # for them to fetch the base
OTHERS_SECONDS = 60.0  # for the rest to end by themselves when one machine has ended
SOON_SECONDS = 5.0  # the same, if this machine was asked to stop and has little time left
KILL_SECONDS = 40.0  # after SIGTERM; torchrun gives its processes 30
# These say what is wrong; any other end may only be the echo of what happened on another machine.
CAUSES = (EXIT_REQUEST, EXIT_DIVERGED, EXIT_OUT_OF_MEMORY, EXIT_SIGKILL)


@dataclass(frozen=True)
class Ending:
    """How a stage ended on one machine."""

    code: int
    error: str = ""
    faults: tuple[dict[str, Any], ...] = ()
    is_lost: bool = False

    @classmethod
    def of(cls, message: dict[str, Any]) -> "Ending":
        return cls(int(message["code"]), str(message["error"]), tuple(message["faults"]))


class Crew:
    """The other machines, as machine 0 sees them during one stage."""

    def __init__(self, crew: Nodes, entrance: socket):
        self._nodes = crew
        self._entrance = entrance
        self._inbox: Inbox = Queue()
        self._lines: dict[int, Line] = {}
        self._is_complete = False
        self.ready: set[int] = set()
        self.endings: dict[int, Ending] = {}

    @property
    def missing(self) -> list[int]:
        return [rank for rank in range(1, self._nodes.count) if rank not in self._lines]

    @property
    def is_ready(self) -> bool:
        return len(self.ready) == self._nodes.count - 1

    @property
    def has_ended(self) -> bool:
        return len(self.endings) == self._nodes.count - 1

    @property
    def has_failed(self) -> bool:
        return any(ending.code for ending in self.endings.values())

    def gather(self) -> None:
        """Wait until every machine has connected; PreemptedError, which is worth another try, if some do not come."""
        until = time.monotonic() + WAIT_SECONDS
        while self.missing:
            with suppress(TimeoutError):
                Line(self._entrance.accept()[0], self._inbox)
            self.hear()
            if time.monotonic() > until:
                raise PreemptedError(
                    f"machines {', '.join(map(str, self.missing))} of {self._nodes.count} did not connect within "
                    f"{WAIT_SECONDS:.0f} s; does tasks.training.node run there, and does it reach "
                    f"{self._nodes.address}:{self._nodes.port}?"
                )
        self._is_complete = True

    def tell(self, **message: Any) -> None:
        for line in self._lines.values():
            line.say(**message)

    def hear(self) -> None:
        """Take in what has arrived; waits for a moment if nothing has."""
        try:
            line, message = self._inbox.get(timeout=POLL_SECONDS)
        except Empty:
            return
        rank = next((rank for rank, own in self._lines.items() if own is line), None)
        if rank is None:
            if message is not None:
                self._admit(line, message)
        elif message is None and not self._is_complete:
            del self._lines[rank]
        elif message is None:
            lost = Ending(EXIT_PREEMPTED, f"machine {rank} of {self._nodes.count} was lost", is_lost=True)
            self.endings.setdefault(rank, lost)
        elif "ended" in message:
            self.endings[rank] = Ending.of(message["ended"])
        else:
            self.ready.add(rank)

    def _admit(self, line: Line, message: dict[str, Any]) -> None:
        rank, count = message.get("rank"), message.get("count")
        if count == self._nodes.count and isinstance(rank, int) and 0 < rank < count:
            self._lines[rank] = line  # instead of an earlier one: that machine was started anew
        else:
            line.say(refused=f"this is machine {rank} of {count}, but machine 0 is one of {self._nodes.count}")

    def dismiss(self) -> None:
        for line in self._lines.values():
            line.close()


def conduct(crew_nodes: Nodes, command: Sequence[str]) -> int:
    """Run `command`, whose last word is the job's file, here and its job on all other machines; the exit code."""
    job_file = Path(command[-1])
    processes: list[subprocess.Popen[bytes]] = []
    asked: list[int] = []

    def on_sigterm(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        if not processes:  # else the launcher, which is in the same process group, got it too
            raise PreemptedError("asked to stop (SIGTERM) before the other machines were ready")

    signal.signal(signal.SIGTERM, on_sigterm)
    try:
        with door(crew_nodes.port, until=float("inf")) as entrance:
            crew = Crew(crew_nodes, entrance)
            try:
                print(f"waiting for {crew_nodes.count - 1} more machines at port {crew_nodes.port}", flush=True)
                crew.gather()
                crew.tell(job=json.loads(job_file.read_text(encoding="utf-8")))
                if not _until(READY_SECONDS, lambda: crew.is_ready or crew.has_failed, crew):
                    raise PreemptedError(f"after {READY_SECONDS:.0f} s only machines {sorted(crew.ready)} were ready")
                code: int | None = None
                if not crew.has_failed:
                    crew.tell(start=True)
                    processes.append(subprocess.Popen(command))
                    code = _until_the_end(processes[0], crew)
                    _until(SOON_SECONDS if asked else OTHERS_SECONDS, lambda: crew.has_ended, crew)
                return settle(code, crew.endings, job_file.parent)
            finally:
                crew.dismiss()
    except TunefleetError as error:
        _note(job_file.parent, exit_code(error), f"{type(error).__name__}: {error}")
        print(error, file=sys.stderr)
        return exit_code(error)


def _until(seconds: float, is_so: Callable[[], bool], crew: Crew) -> bool:
    until = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > until:
            return False
        crew.hear()
    return True


def _until_the_end(process: subprocess.Popen[bytes], crew: Crew) -> int:
    """Wait for the launcher here, without end as long as no other machine has failed."""
    while process.poll() is None and not crew.has_failed:
        crew.hear()
    if not _until(OTHERS_SECONDS, lambda: process.poll() is not None, crew):
        process.terminate()
        if not _until(KILL_SECONDS, lambda: process.poll() is not None, crew):
            process.kill()
    code = process.wait()
    return code if code >= 0 else 128 - code


def settle(code: int | None, endings: dict[int, Ending], folder: Path) -> int:
    """The exit code of the stage as a whole, with the reason in outcome.json; `code` is the one of machine 0.

    None means that the launcher here was not started. What machine 0 has noted itself stays the reason if it is one.
    """
    noted = _noted(folder)
    own = noted["exit_code"] if noted and code == EXIT_FAILED else code
    failed = {rank: ending for rank, ending in sorted(endings.items()) if ending.code}
    for rank, ending in failed.items():
        print(f"machine {rank} ended with exit code {ending.code}: {ending.error}", flush=True)
    if code == 0 or own in CAUSES or not failed:
        return EXIT_FAILED if code is None else code
    for rank, ending in failed.items():
        if ending.code in CAUSES:
            if ending.faults:
                write_json(folder / FAULTS, ending.faults)
            return _note(folder, ending.code, f"machine {rank}: {ending.error}")
    lost = [ending for ending in failed.values() if ending.is_lost]
    if lost:  # what the processes here say is that they were left alone
        return _note(folder, EXIT_PREEMPTED, f"PreemptedError: {'; '.join(ending.error for ending in lost)}")
    told = "; ".join(f"machine {rank}: {ending.error}" for rank, ending in failed.items())
    if code is None:
        return _note(folder, next(iter(failed.values())).code, told)
    if noted:  # which of them was first, nobody knows
        _note(folder, noted["exit_code"], f"{noted['error']}; {told}")
    return code


def _noted(folder: Path) -> dict[str, Any] | None:
    file = folder / OUTCOME
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None


def _note(folder: Path, code: int, error: str) -> int:
    write_json(folder / OUTCOME, {"exit_code": code, "error": " ".join(error.split())})
    return code


def faults_of(error: BaseException) -> tuple[dict[str, Any], ...]:
    faults: tuple[Fault, ...] = getattr(error, "faults", ())
    return tuple(asdict(fault) for fault in faults)


if __name__ == "__main__":
    raise SystemExit(conduct(nodes(), sys.argv[1:]))
