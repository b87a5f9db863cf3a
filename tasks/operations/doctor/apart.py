"""A check in a process of its own, with a limit on its time.

One that hangs on a silent server, is killed by a driver or holds a GPU takes nothing else along: what it found until
then counts, and what became of it is a finding too.

    doctor -> python -m tasks.operations.doctor.apart MODULE FUNCTION SECONDS ARGUMENT... -> "@finding {...}" lines
"""

import importlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import IO, Any

from infra.settings import PROJECT
from tasks.operations.doctor.finding import Finding, fault

_MARK = "@finding "
_GRACE_SECONDS = 5.0  # after which a process whose parent is gone ends by itself
_SHOWN = 300  # characters of an error


@dataclass(frozen=True)
class Apart:
    """A check that was started."""

    check: str  # its name, where it leaves no findings of its own
    advice: str  # what to do then
    seconds: float
    until: float  # by time.monotonic
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    errors: IO[bytes]

    def findings(self) -> list[Finding]:
        """Everything that it found, and what kept it from finding more; waits until its time is over at most."""
        try:
            code = self.process.wait(max(self.until - time.monotonic(), 0))
            end = f"the check ended with {_words(code)}: {self._last_error()}" if code else ""
        except subprocess.TimeoutExpired:
            end = f"no answer within {self.seconds:g} s"
        self.output.seek(0)
        lines = self.output.read().decode(errors="replace").splitlines()
        found = [Finding(**json.loads(line[len(_MARK) :])) for line in lines if line.startswith(_MARK)]
        return [*found, fault(self.check, end, self.advice)] if end else found

    def _last_error(self) -> str:
        self.errors.seek(0)
        lines = [line for line in self.errors.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip()[:_SHOWN] if lines else "it said nothing"


@contextmanager
def apart(
    check: str, function: Callable[..., Iterable[Finding]], *arguments: str, seconds: float, advice: str
) -> Iterator[Apart]:
    """Start `function(*arguments)`, a generator of findings at the top of its module; nothing of it outlives the block.

    The module should import little at its top: this process imports it too.
    """
    # -P: modules come from the project, not from whatever lies in the folder where doctor was called
    command = [sys.executable, "-P", "-m", __name__, function.__module__, function.__name__, str(seconds), *arguments]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))}
    until = time.monotonic() + seconds
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, env=env, start_new_session=True
        )
        try:
            yield Apart(check, advice, seconds, until, process, output, errors)
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _words(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def first_line(error: BaseException) -> str:
    """An error of a library in one line of bearable length."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return (f"{type(error).__name__}: {text}" if text else type(error).__name__)[:_SHOWN]


def main(module: str, function: str, seconds: str, *arguments: str) -> None:
    signal.alarm(math.ceil(float(seconds) + _GRACE_SECONDS))
    check: Any = getattr(importlib.import_module(module), function)
    for finding in check(*arguments):
        print(_MARK + json.dumps(asdict(finding)), flush=True)
    sys.stdout.flush()
    os._exit(0)  # threads of libraries that still wait for a server do not count


if __name__ == "__main__":
    main(*sys.argv[1:])
