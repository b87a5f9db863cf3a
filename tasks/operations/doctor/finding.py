"""What a check found, in plain words, and what to do about it."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "fault", "absent"]
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    check: str  # what was looked at, in one to three words
    status: Status
    found: str
    advice: str = ""  # what to do, as a sentence or a command


def ok(check: str, found: str) -> Finding:
    return Finding(check, "ok", found)


def absent(check: str, found: str, advice: str = "") -> Finding:
    """Not there, and not needed as long as nobody asks for it."""
    return Finding(check, "absent", found, advice)


def warning(check: str, found: str, advice: str) -> Finding:
    """Runs work, but something may surprise."""
    return Finding(check, "warning", found, advice)


def fault(check: str, found: str, advice: str) -> Finding:
    """Would keep a run from working."""
    return Finding(check, "fault", found, advice)
