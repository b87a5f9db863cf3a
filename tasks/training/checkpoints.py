"""Checkpoints that can be believed: written beside, hashed, forced to disk, renamed; only whole ones are resumed from.

    <folder>/checkpoint-40/     what the trainer needs to go on after step 40, and hashes.json over all of it
    <folder>/best-30/           the weights with the best validation loss so far
    <folder>/.writing-*         unfinished; whoever writes next removes it

transformers saves in place: a crash leaves a checkpoint that resumes to other weights without a word. The folder
belongs to one stage key, so a checkpoint never meets another recipe or other data.
"""

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.errors import PreemptedError
from infra.hashing import digest_file

HASHES = "hashes.json"
WAIT_SECONDS = 60
SAVE_SECONDS = 60  # between checkpoints, if the recipe names no steps: a crash costs a minute
KEPT = 2  # checkpoints: if the newest turns out damaged, there is the one before


@contextmanager
def only_writer(folder: Path, *, is_first: bool) -> Iterator[None]:
    """Keep other trainings out of the folder; the first of a job's processes does it for all.

    A training whose flow was killed lives on for seconds, in which the next one may begin. PreemptedError, which is
    worth another try, if it is still there after WAIT_SECONDS.
    """
    if not is_first:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        until = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise PreemptedError(f"another training still writes its checkpoints to {folder}") from None
                time.sleep(0.1)
        yield


def start(folder: Path, name: str) -> Path:
    """An empty folder to write into; `finish` makes it count. Several processes may write between the two."""
    beside = folder / f".writing-{name}"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    return beside


def finish(folder: Path, name: str) -> Path:
    beside, final = folder / f".writing-{name}", folder / name
    files = sorted(path for path in beside.rglob("*") if path.is_file())
    hashes = {path.relative_to(beside).as_posix(): digest_file(path) for path in files}
    (beside / HASHES).write_text(json.dumps(hashes, indent=1))
    for path in [*files, beside / HASHES, beside]:
        _to_disk(path)
    shutil.rmtree(final, ignore_errors=True)
    beside.rename(final)
    _to_disk(folder)
    return final


def newest_whole(folder: Path) -> Path | None:
    """The checkpoint of the latest step that is what was written, with the best weights that it refers to; or None."""
    for path in sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True):
        if is_whole(path) and ((best := best_step(path)) is None or is_whole(folder / f"best-{best}")):
            return path
    return None


def is_whole(path: Path) -> bool:
    """Whether every file is there with the content that was written, and no other."""
    try:
        hashes = json.loads((path / HASHES).read_text())
        there = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()} - {HASHES}
        return there == set(hashes) and all(digest_file(path / name) == digest for name, digest in hashes.items())
    except (OSError, ValueError):
        return False


def drop_old(folder: Path, *, best_now: int | None) -> None:
    """Keep the latest checkpoints, and the best weights that they or the running training refer to."""
    old = sorted(folder.glob("checkpoint-*"), key=step_of)
    for path in old[:-KEPT]:
        shutil.rmtree(path)
    wanted = {best_now, *map(best_step, old[-KEPT:])}
    for path in folder.glob("best-*"):
        if step_of(path) not in wanted:
            shutil.rmtree(path)


def best_step(checkpoint: Path) -> int | None:
    """The step of the best validation loss when this checkpoint was written; None without validation, or unreadable."""
    try:
        return json.loads((checkpoint / "trainer_state.json").read_text())["best_global_step"]
    except (OSError, ValueError, KeyError):
        return None


def step_of(path: Path) -> int:
    match = re.search(r"-(\d+)$", path.name)
    return int(match[1]) if match else -1


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
