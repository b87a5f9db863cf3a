"""Data files beside the page, named by what they hold: written once, and removed an hour after no page needs them.

Two builds may run at once, and several pages may stand in one folder. A file's time says when a page last needed it:
whoever builds a page makes the files of the page before and of the new one young, and removes none but old ones that no
page of the folder names.
"""

import os
import re
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

from infra.files import Files

DATA = "data"
OURS = re.compile(r"(?:fleet|tradeoff|heat|history|bench|adapters)(?:-\d+)?-[0-9a-f]{12}\.js")
KEPT = 3600.0  # seconds; a build takes minutes, and who has a page open may look at more of it
TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8"}


class DataFiles:
    """Those of one folder."""

    def __init__(self, folder: Files):
        self.folder = folder
        self._sizes = {name: entry["size"] for name, entry in _entries(folder).items()}
        self._young: set[str] = set()

    def add(self, name: str, data: bytes) -> None:
        """Write the file, unless it is there already."""
        if self._sizes.get(name) != len(data) or not self._touch(name):
            write(self.folder, f"{DATA}/{name}", data)
            self._young.add(name)

    def leave(self, page: str) -> None:
        """Before `page` is written anew: whoever has it open needs what it names for a while yet."""
        if left := set(self._sizes) - self._young:
            for name in _named(self.folder, [page]) & left:
                self._touch(name)

    def remove_old(self, *, now: float | None = None) -> None:
        """Remove what no page of the folder has needed for an hour; `now` in seconds since 1970."""
        at = time.time() if now is None else now
        old = {name for name, entry in _entries(self.folder).items() if at - _changed(entry) > KEPT}
        if old:
            pages = [name for name in self.folder.list_names("") if name.endswith(".html")]
            for name in sorted(old - _named(self.folder, pages)):
                with suppress(FileNotFoundError):  # another build was faster
                    self.folder.fs.rm_file(f"{self.folder.root}/{DATA}/{name}")

    def _touch(self, name: str) -> bool:
        """Make the file young; False if it has gone or is not ours: then it is to be written."""
        uri = f"{self.folder.root}/{DATA}/{name}"
        try:
            if self.folder.is_local:
                os.utime(uri)
            else:  # a bucket copies a file onto itself if something about it is said anew
                self.folder.fs.cp_file(uri, uri, MetadataDirective="REPLACE", ContentType=TYPES[".js"])
        except Exception:  # noqa: BLE001 - an OSError, or whatever a bucket's client raises
            return False
        self._young.add(name)
        return True


def write(folder: Files, path: str, data: bytes) -> None:
    """Replace a file as a whole."""
    if folder.is_local:
        folder.write(path, data)
    else:  # browsers go by the type that a bucket tells them
        folder.fs.pipe_file(f"{folder.root}/{path}", data, ContentType=TYPES[PurePosixPath(path).suffix])


def _entries(folder: Files) -> dict[str, Mapping[str, Any]]:
    """{name: what the filesystem says of it} of the data files that a build of ours wrote."""
    try:
        found = folder.fs.ls(f"{folder.root}/{DATA}", detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    named = {PurePosixPath(entry["name"]).name: entry for entry in found}
    return {name: entry for name, entry in named.items() if OURS.fullmatch(name)}


def _changed(entry: Mapping[str, Any]) -> float:
    """Seconds since 1970: of a disk's file, or of a bucket's."""
    when = entry["mtime"] if "mtime" in entry else entry["LastModified"]
    return when.timestamp() if isinstance(when, datetime) else float(when)


def _named(folder: Files, pages: Iterable[str]) -> set[str]:
    """The data files that these pages name, as far as they are there."""
    found: set[str] = set()
    for page in pages:
        with suppress(FileNotFoundError):
            found.update(OURS.findall(folder.fs.cat_file(f"{folder.root}/{page}").decode("utf-8", "replace")))
    return found
