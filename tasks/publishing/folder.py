"""Publish to a local folder, `<path>/<name>/<what>-<digest>/`, so that a reader never sees half a release.

The release is written beside its place, forced to disk, checked, and then renamed into it. A process killed on the
way leaves nothing under the final name, and the next publish of the same release clears away what it left.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from infra.errors import Fault, IntegrityError
from infra.hashing import digest_file
from tasks.publishing.release import Content, Published, Release, contents

_LOCK = ".publish.lock"


def check(path: str | Path) -> list[Fault]:
    """What would keep a release from being written under `path`, found before any training."""
    path = Path(path).expanduser().absolute()
    standing = next(folder for folder in (path, *path.parents) if folder.exists())  # "/" always does
    if not standing.is_dir():
        return [Fault(f"cannot publish to {path}: {standing} is a file. Give a folder, or one that can be made")]
    try:
        with tempfile.TemporaryFile(dir=standing):
            return []
    except OSError as error:
        return [
            Fault(f"cannot publish to {path}: {standing} is not writable ({error.strerror}). Choose another folder")
        ]


def publish(release: Release, path: str | Path) -> Published:
    """Put the release under `path`, or leave it where it already stands whole.

    A target whose files differ in any way from the release is replaced. Raises IntegrityError when the artifact
    changes while it is being copied.
    """
    home = Path(path).expanduser().absolute() / release.name
    target = home / release.version
    published = Published(to="folder", uri=str(target))
    wanted = contents(release)
    home.mkdir(parents=True, exist_ok=True)
    with _only_writer(home):
        fresh, aside = home / f".{release.version}.new", home / f".{release.version}.old"
        _remove(fresh)
        _remove(aside)
        if _holds(target, wanted):
            return published
        _write(wanted, fresh)
        if not _holds(fresh, wanted):
            raise IntegrityError(
                f"{release.folder} changed while it was being published to {target}; nothing was released"
            )
        if os.path.lexists(target):
            target.rename(aside)  # damaged: a folder with files in it cannot be renamed over
        fresh.rename(target)
        _sync(home)
        _remove(aside)
    return published


@contextmanager
def _only_writer(home: Path) -> Iterator[None]:
    # Two publishers of one name take turns; the kernel frees the lock of one that was killed.
    with (home / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _holds(folder: Path, wanted: Sequence[Content]) -> bool:
    if folder.is_symlink() or not folder.is_dir():
        return False
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
    if found.keys() != {content.path for content in wanted}:
        return False
    return all(
        found[content.path].is_file()
        and found[content.path].stat().st_size == content.size
        and digest_file(found[content.path]) == content.sha256
        for content in wanted
    )


def _write(wanted: Sequence[Content], folder: Path) -> None:
    for content in wanted:
        copy = folder / content.path
        copy.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content.source, bytes):
            copy.write_bytes(content.source)
        else:
            shutil.copyfile(content.source, copy)
        _sync(copy)
    for inner in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        _sync(inner)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
