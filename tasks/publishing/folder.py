"""Publish to a local folder, `<path>/<name>/<what>-<digest>/`, so that a reader never sees half a release.

The release is written beside its place, forced to disk, checked, and then renamed into it; so is the channel
`<path>/<name>/channels/<channel>.json`, last and only if it is still the one that was read. A process killed on the
way leaves nothing under a final name, and the next publish of the same name clears away what it left.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from infra.errors import Fault, IntegrityError, RequestError
from infra.hashing import digest_file
from tasks.publishing.pointer import Pointer, Seen, dump, lost, parse, path_of, same_release
from tasks.publishing.release import (
    MANIFEST,
    Content,
    Published,
    Release,
    contents,
    released_files,
    require_same_override,
)

_LOCK = ".publish.lock"
_FULL = {errno.ENOSPC, errno.EDQUOT}
_NOT_OURS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST}


def check(path: str | Path, need_bytes: int = 0) -> list[Fault]:
    """What would keep a release of `need_bytes` from being written under `path`, found before any training."""
    path = _absolute(path)
    standing = next(folder for folder in (path, *path.parents) if folder.exists())  # "/" always does
    if not standing.is_dir():
        return [Fault(f"cannot publish to {path}: {standing} is a file. Give a folder, or one that can be made")]
    try:
        with tempfile.TemporaryFile(dir=standing):
            pass
    except OSError as error:
        return [
            Fault(f"cannot publish to {path}: {standing} is not writable ({error.strerror}). Choose another folder")
        ]
    return list(_no_room(path, need_bytes).faults) if shutil.disk_usage(standing).free < need_bytes else []


def publish(release: Release, path: str | Path) -> Published:
    """Put the release under `path`, or leave it where it already stands whole.

    A target whose files differ from the release is replaced; a card that has been reworded since is no difference.
    Raises IntegrityError when the artifact changes while it is being copied, RequestError when the disk is full or
    not ours to write, or when the standing card tells another reason for an override.
    """
    home = _absolute(path) / release.name
    target = home / release.slug
    wanted = contents(release)
    need = sum(content.size for content in wanted)
    with _explained(target, need), _only_writer(home):
        _clear_away(home)
        if _stands(target, release, wanted):
            require_same_override(release, (target / MANIFEST).read_bytes(), str(target))
        else:
            if shutil.disk_usage(home).free < need:
                raise _no_room(target, need)
            fresh, aside = home / f".{release.slug}.new", home / f".{release.slug}.old"
            try:
                _write(wanted, fresh)
                if not _holds(fresh, {content.path: content.sha256 for content in wanted}):
                    raise IntegrityError(
                        f"{release.folder} changed while it was being published to {target}; nothing was released"
                    )
                if os.path.lexists(target):
                    target.rename(aside)  # damaged: a folder with files in it cannot be renamed over
                fresh.rename(target)
                _sync(home)
            finally:
                _clear_away(home)
    return Published(to="folder", uri=str(target), what=release.what, digest=release.digest)


def read_pointer(path: str | Path, name: str, channel: str) -> Seen:
    """The channel as it stands; its token is the SHA-256 of the file."""
    file = _absolute(path) / path_of(name, channel)
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return Seen(None, None)
    return Seen(parse(data, str(file)), hashlib.sha256(data).hexdigest())


def move_pointer(path: str | Path, pointer: Pointer, seen: Seen) -> None:
    """Move the channel to `pointer`, if it is still what was `seen`; LostRaceError if somebody else has moved it.

    RequestError if a release that it would lead to is not there.
    """
    if same_release(seen.pointer, pointer):
        return
    home, file = _absolute(path) / pointer.name, _absolute(path) / path_of(pointer.name, pointer.channel)
    for slug in pointer.releases.values():
        if not (home / slug / MANIFEST).is_file():
            raise RequestError(f"{file} cannot lead to {slug}, which is not there as a whole: publish it first")
    with _explained(file, len(dump(pointer))), _only_writer(home):
        now = read_pointer(path, pointer.name, pointer.channel)
        if same_release(now.pointer, pointer):
            return
        if now.token != seen.token:
            raise lost(pointer, str(file))
        file.parent.mkdir(exist_ok=True)
        _sync(home)
        beside = file.with_name(f".{file.name}.new")  # one that a killed publisher left is overwritten
        beside.write_bytes(dump(pointer))
        _sync(beside)
        beside.rename(file)
        _sync(file.parent)


@contextmanager
def _only_writer(home: Path) -> Iterator[None]:
    # Publishers of one name take turns; the kernel frees the lock of one that was killed.
    home.mkdir(parents=True, exist_ok=True)
    with (home / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _explained(target: Path, need_bytes: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise _no_room(target, need_bytes) from error
        if error.errno in _NOT_OURS:
            raise RequestError(
                f"cannot publish to {target}: {error.strerror} ({error.filename}). Give it to this user, or choose "
                "another folder; nothing was released"
            ) from error
        raise


def _no_room(target: Path, need_bytes: int) -> RequestError:
    standing = next(folder for folder in (target, *target.parents) if folder.exists())
    free = shutil.disk_usage(standing).free
    return RequestError(
        f"cannot publish to {target}: it takes {need_bytes:,} bytes, and {free:,} are free (or a quota is used up). "
        "Make room, or choose another folder; nothing was released"
    )


def _stands(target: Path, release: Release, wanted: Sequence[Content]) -> bool:
    """Whether a whole release of the same files is there, whatever its card says.

    It is not replaced for a reworded card: in the moment between, a reader who follows the channel would find nothing.
    """
    if target.is_symlink() or not (target / MANIFEST).is_file():
        return False
    manifest = (target / MANIFEST).read_bytes()
    vouched = released_files(manifest) or {}
    if any(vouched.get(content.path) != content.sha256 for content in wanted if content.path not in release.wording):
        return False
    return _holds(target, {**vouched, MANIFEST: hashlib.sha256(manifest).hexdigest()})


def _holds(folder: Path, files: dict[str, str]) -> bool:
    """Whether the folder holds exactly `files`, path to sha256."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
    return found.keys() == files.keys() and all(
        found[path].is_file() and digest_file(found[path]) == sha256 for path, sha256 in files.items()
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


def _clear_away(home: Path) -> None:
    """What this publisher has no more use for, and what killed ones left: whoever has the lock is the only one."""
    for left in (*home.glob(".*.new"), *home.glob(".*.old")):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink()


def _absolute(path: str | Path) -> Path:
    return Path(path).expanduser().absolute()
