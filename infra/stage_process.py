"""What a stage's process and its launcher agree on: files, exit codes and errors, translated in both directions.

On the stage's side, `tasks/<stage>/__main__.py` is `main(run)`: it reads job.json, calls `run(job, folder)` and
leaves beside the job

    result.json    what `run` returned; only on success, and only from the first of this machine's processes
    faults.json    what is wrong with the request, when that is why it ended
    outcome.json   the exit code and the error in one line, when it failed: launchers that start several
                   processes (accelerate, torchrun) end with 1 whatever their children ended with

On the launcher's side, `hand_over` writes the job, and `outcome` turns what was left into the result or into an
exception of infra/errors.py.
"""

import json
import os
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

from infra.errors import DivergedError, Fault, KilledError, OutOfMemoryError, PreemptedError, RequestError, StageError

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"

JOB, RESULT, FAULTS, OUTCOME = "job.json", "result.json", "faults.json", "outcome.json"
PROGRESS = "@progress "  # a line that starts with this carries one JSON object

EXIT_FAILED = 1
EXIT_REQUEST = 2
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: worth another try
EXIT_DIVERGED = 76
EXIT_OUT_OF_MEMORY = 77
EXIT_NOT_STARTED = 127  # as shells say it
EXIT_SIGKILL = 128 + signal.SIGKILL  # not sent by us, so as a rule by the kernel for want of memory
EXIT_SIGTERM = 128 + signal.SIGTERM  # came before the stage could handle it

_ENDINGS: dict[int, tuple[type[StageError], str]] = {
    EXIT_PREEMPTED: (PreemptedError, "was asked to stop before it was done"),
    EXIT_SIGTERM: (PreemptedError, "was asked to stop before it was done"),
    EXIT_DIVERGED: (DivergedError, "diverged"),
    EXIT_OUT_OF_MEMORY: (OutOfMemoryError, "ran out of memory"),
    EXIT_SIGKILL: (
        KilledError,
        "was killed (SIGKILL), but not by its launcher: the kernel does so when the machine or the container "
        "is out of memory",
    ),
}
_SHOWN_LINES = 20

# PyTorch has an exception class for a full GPU only: the rest are RuntimeErrors that say so.
_MEMORY_TEXTS = ("DefaultCPUAllocator: can't allocate memory", "CUDA error: out of memory")


def main(run: Callable[[dict[str, Any], Path], Mapping[str, JSON]], argv: Sequence[str] | None = None) -> None:
    """Run one job in this process; returns after success, else SystemExit with one of the EXIT_ codes.

    SIGTERM raises PreemptedError inside `run`, once, so that it can save and clean up; a stage that rather
    finishes its step takes `at_sigterm`.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1:
        print(f"usage: python -m tasks.<stage> {JOB}; got {len(arguments)} arguments", file=sys.stderr)
        raise SystemExit(EXIT_REQUEST)
    job_file = Path(arguments[0]).resolve()
    folder = job_file.parent
    if _is_first():
        (folder / RESULT).unlink(missing_ok=True)
    _raise_on_sigterm()
    try:
        result = run(json.loads(job_file.read_text(encoding="utf-8")), folder)
        if _is_first():
            write_json(folder / RESULT, result)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # done: nothing is left that could be preempted
    except Exception as error:
        code = exit_code(error)
        _leave_outcome(folder, code, error)
        if isinstance(error, RequestError):
            print(error, file=sys.stderr)
        else:
            traceback.print_exc()
        raise SystemExit(code) from error


def progress(**fields: JSON) -> None:
    """Report how far the stage is: one line, which the launching side turns back into a dict (at most 64 KiB).

    Of several processes that train together only the first is heard, of each machine.
    """
    if not _is_first():
        return
    # One write: the lines of several processes share a pipe, which keeps writes below 4 KiB whole.
    sys.stdout.write(f"{PROGRESS}{json.dumps(fields)}\n")
    sys.stdout.flush()


def _is_first() -> bool:
    return os.environ.get("LOCAL_RANK", os.environ.get("RANK")) in (None, "0")


def split_progress(line: str) -> tuple[str, dict[str, Any] | None]:
    """The text of a line, and the event that `progress` printed; behind the text if that was a bar without an end."""
    text, mark, rest = line.partition(PROGRESS)
    event = _object(rest) if mark else None
    return (line, None) if event is None else (text, event)


def exit_code(error: BaseException) -> int:
    """The code a stage ends with for `error`."""
    if isinstance(error, RequestError):
        return EXIT_REQUEST
    if isinstance(error, PreemptedError):
        return EXIT_PREEMPTED
    if isinstance(error, DivergedError):
        return EXIT_DIVERGED
    # By name: ours and torch's are both called so, and torch is not to be imported here.
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    said = isinstance(error, RuntimeError) and any(text in str(error) for text in _MEMORY_TEXTS)
    if named or said or isinstance(error, MemoryError):
        return EXIT_OUT_OF_MEMORY
    return EXIT_FAILED


def write_json(file: Path, value: JSON) -> None:
    """Replace `file` as a whole, on disk before it is seen. ValueError for NaN and infinity, which are not JSON."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    handle, beside = tempfile.mkstemp(dir=file.parent, prefix=".writing-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(beside).replace(file)
    finally:
        Path(beside).unlink(missing_ok=True)


def _leave_outcome(folder: Path, code: int, error: Exception) -> None:
    if isinstance(error, RequestError):
        write_json(folder / FAULTS, [asdict(fault) for fault in error.faults])
    noted = folder / OUTCOME
    # Among several processes the first failure is the cause. "Preempted" gives way to any other: a launcher
    # sends SIGTERM to the rest as soon as one has failed.
    if not noted.exists() or json.loads(noted.read_text(encoding="utf-8"))["exit_code"] == EXIT_PREEMPTED:
        message = " ".join(str(error).split())
        write_json(noted, {"exit_code": code, "error": f"{type(error).__name__}: {message}"})


def _raise_on_sigterm() -> None:
    owner = os.getpid()

    def on_sigterm(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked data-loading worker: it has nothing to save
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        signal.signal(number, signal.SIG_IGN)  # the first one counts; another must not cut the saving short
        raise PreemptedError("asked to stop (SIGTERM) before the stage was done")

    signal.signal(signal.SIGTERM, on_sigterm)


@contextmanager
def at_sigterm(note: Callable[[], None]) -> Iterator[None]:
    """While this is held, SIGTERM calls `note` and raises nothing."""
    before = signal.signal(signal.SIGTERM, lambda _number, _frame: note())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def hand_over(job: Mapping[str, JSON], folder: Path) -> Path:
    """Write job.json in `folder`, without anything that an earlier try left there; returns its path."""
    for name in (RESULT, FAULTS, OUTCOME):
        (folder / name).unlink(missing_ok=True)
    write_json(folder / JOB, job)
    return folder / JOB


def outcome(code: int, *, stage: str, folder: Path, log: Sequence[str], rerun: str) -> dict[str, Any]:
    """The result that the stage left in `folder`, or the error that its exit code stands for is raised.

    `code` is 128 + signal for a killed process. `log` holds its last lines, and `rerun` the command that runs it
    by hand ("" if it cannot be), both for the message.
    """
    result = _read(folder / RESULT)
    if code == 0 and result is not None:
        return result
    noted = _read(folder / OUTCOME) or {}
    code = _cause(code, noted.get("exit_code"), log)
    why = f": {noted['error']}" if noted.get("exit_code") == code else ""
    shown = "\n".join(f"    {line}" for line in log[-_SHOWN_LINES:]) or "    (it printed nothing)"
    report = f"Its last lines:\n{shown}" + (f"\nRun it again by hand: {rerun}" if rerun else "")
    if code == 0:
        raise StageError(f"{stage} ended with exit code 0 but left no JSON object in {folder / RESULT}.\n{report}")
    if code == EXIT_REQUEST:
        raise RequestError(_read_faults(folder / FAULTS) or f"{stage} refused its job.\n{report}")
    kind, what = _ENDINGS.get(code, (StageError, f"failed with exit code {code}"))
    raise kind(f"{stage} {what}{why}.\n{report}")


def _object(text: str) -> dict[str, Any] | None:
    """The JSON object in `text`, or None if it holds anything else."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _cause(code: int, noted: int | None, log: Sequence[str]) -> int:
    """The exit code of the process that failed first, below a launcher that always ends with 1."""
    if code != EXIT_FAILED:
        return code
    if noted is not None and noted != EXIT_PREEMPTED:
        return noted
    # A killed process notes nothing, and its siblings are preempted by the launcher. Then the report tells, in
    # the words of torchrun ("exitcode  : -9 (pid: 6935)", first cause last) or of accelerate for one process.
    killed = re.findall(r"exitcode\s*: -(\d+) \(pid|died with <Signals\.\w+: (\d+)>", "\n".join(log))
    if killed:
        return 128 + int("".join(killed[-1]))
    return code if noted is None else noted


def _read_faults(file: Path) -> list[Fault]:
    if not file.exists():
        return []
    return [Fault(**fault) for fault in json.loads(file.read_text(encoding="utf-8"))]


def _read(file: Path) -> dict[str, Any] | None:
    return _object(file.read_text(encoding="utf-8")) if file.exists() else None
