"""What this machine has: Python, the project's commit, memory, disk, GPUs. Asks the system only."""

import os
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.specifiers import SpecifierSet

from infra.device_memory import free_memory, local_devices
from infra.gpus import CPU
from infra.settings import PROJECT
from tasks.caching import git_commit
from tasks.operations.doctor.finding import GIB, Finding, absent, fault, ok, warning

_DEMO_MEMORY = 3 * GIB  # bytes; the demo's largest process takes 2.4 GiB
_LITTLE_DISK, _NO_DISK = 10 * GIB, GIB  # bytes; a base of 1B parameters in 16 bits is 2 GB, twice while it is imported


def look_at_machine(scratch: Path) -> Iterator[Finding]:
    """`scratch` is where runs keep work in progress; the folder need not be there yet."""
    yield python()
    yield checkout(git_commit())
    yield memory(free_memory())
    yield disk(scratch)
    yield from gpus()


def python() -> Finding:
    wanted = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["requires-python"]
    version = ".".join(map(str, sys.version_info[:3]))
    if version not in SpecifierSet(wanted):
        return fault("Python", f"{version}; Tunefleet needs {wanted}", "install that and make .venv anew with it")
    return ok("Python", f"{version}, {sys.executable}")


def checkout(commit: str | None) -> Finding:
    """`commit` as manifests record it: a "+" behind it says that files differ from it."""
    if commit is None:
        if not (PROJECT / ".git").exists():
            return absent("checkout", f"{PROJECT} is no git checkout, so results name no commit")
        return warning(
            "checkout",
            f"git does not answer in {PROJECT}, so results name no commit",
            f"install git; if another user owns the folder: git config --global --add safe.directory {PROJECT}",
        )
    if commit.endswith("+"):
        advice = "commit them before runs that others should repeat: results record the commit, and that it was altered"
        return warning("checkout", f"commit {commit[:7]}, and files that differ from it", advice)
    return ok("checkout", f"commit {commit[:7]}, nothing changed")


def memory(free: int) -> Finding:
    found = f"{free / GIB:.1f} GiB free"
    if free < _DEMO_MEMORY:
        return warning(
            "memory", found, "the demo alone takes 2.4 GiB; `tunefleet plan RECIPE` says what a recipe needs"
        )
    return ok("memory", found)


def disk(scratch: Path) -> Finding:
    standing = next(folder for folder in (scratch, *scratch.parents) if folder.exists())
    free = shutil.disk_usage(standing).free
    found = f"{free / GIB:.1f} GiB free for work in {scratch}"
    if not os.access(standing, os.W_OK):
        return fault(
            "disk", f"{standing} is not writable, and runs work in {scratch}", "set TUNEFLEET_CACHE or --store"
        )
    if free < _NO_DISK:
        return fault("disk", found, "make room, or move it: TUNEFLEET_CACHE, and --store or TUNEFLEET_STORE")
    if free < _LITTLE_DISK:
        return warning("disk", found, "enough for small models; `tunefleet plan RECIPE` says what a recipe needs")
    return ok("disk", found)


def gpus() -> Iterator[Finding]:
    devices = local_devices()
    if devices[0].type == CPU:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = "no NVIDIA GPU was found" if hidden is None else f"none may be used: CUDA_VISIBLE_DEVICES is {hidden!r}"
        yield absent("GPU", f"{why}; runs use the CPU, {os.cpu_count()} cores")
    for one in devices:
        if one.type != CPU:
            free = "free memory unknown" if one.free_bytes is None else f"{one.free_bytes / GIB:.1f} GiB free"
            yield ok(f"GPU {one.name}", f"{one.kind}, {free}")
