"""A stage that a test writes as a few lines, run in real processes: new ones, or forked from a warm one."""

import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

from infra.launch import run_stage

# What the body of a stage may use.
PROLOGUE = r"""
import os, signal, subprocess, sys, time
from pathlib import Path
from infra.errors import *
from infra.stage_process import main, progress

def sleeper(code="", **options):
    "A process that sleeps, once `code` has run in it."
    ready, its_end = os.pipe()
    code += f"\nimport os, time; os.write({its_end}, b'.'); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], pass_fds=[its_end], **options)
    os.read(ready, 1)
    return process.pid

def warm_process():
    "The pid of what forked this stage and its supervisor; None if it is a new process."
    warm = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[1]
    return int(warm) if "infra.warm" in Path(f"/proc/{warm}/cmdline").read_text() else None

def wait_for(file):
    while not file.exists():
        time.sleep(0.02)
"""


class Stage:
    """A stage module on disk, with what its run said."""

    def __init__(self, home: Path, preloaded: list[str] | None = None):
        self.home, self.preloaded = home, preloaded
        self.folder = home / "stage"
        self.env = {"PYTHONPATH": str(home)}
        self.lines: list[str] = []
        self.events: list[dict[str, Any]] = []

    def write(self, body: str) -> None:
        source = f"{PROLOGUE}\ndef run(job, folder):\n{indent(dedent(body), '    ')}\n"
        (self.home / "toy.py").write_text(f"{source}\nif __name__ == '__main__':\n    main(run)\n")

    def run(self, body: str, **options: Any) -> dict[str, Any]:
        self.write(body)
        return self.run_again(**options)

    def run_again(self, **options: Any) -> dict[str, Any]:
        defaults = {"job": {}, "folder": self.folder, "preloaded": self.preloaded}
        options = {**defaults, "on_line": self.lines.append, "on_progress": self.events.append, **options}
        return run_stage("toy", **{**options, "env": {**self.env, **options.get("env", {})}})

    def pids(self) -> list[int]:
        """Those that the stage wrote to the file pids."""
        return [int(pid) for pid in (self.folder / "pids").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> float:
    """The seconds it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() < start + seconds, "not in time"
        time.sleep(0.02)
    return time.monotonic() - start
