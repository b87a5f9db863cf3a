"""A store's registry as it stood at one moment, read many files at a time.

The registry's own functions (tasks/registry/records.py) read one file after the other, which is right for one release
and takes minutes for ten thousand in a bucket. They are given this instead of the store: what they list and read has
been fetched already, some names at a time, because a record holds a whole recipe.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from infra.storage import Store

AT_ONCE = 256  # names whose files are in memory together
FOLDERS = ("releases", "channels")


class Registry(Store):
    """The store, whose files below `releases` and `channels` are those of when this was made."""

    def __init__(self, store: Store):
        super().__init__(store.root)
        self._files: dict[str, dict[str, list[str]]] = {folder: defaultdict(list) for folder in FOLDERS}
        self._children: dict[str, set[str]] = defaultdict(set)
        self._fetched: dict[str, bytes | Exception] = {}
        for folder in FOLDERS:
            for found in self.fs.find(f"{self._path}/{folder}"):
                self._note(folder, PurePosixPath(found).relative_to(self._path))

    def _note(self, folder: str, path: PurePosixPath) -> None:
        if len(path.parts) < 3 or any(part.startswith(".") for part in path.parts):
            return
        self._files[folder][path.parts[1]].append(str(path))
        for parent, child in zip(path.parents, path.parts[::-1], strict=False):
            self._children[str(parent)].add(child)

    def names(self) -> Iterator[str]:
        """Every name that has releases, whose files can be read until the next ones are asked for."""
        names = sorted(self._files["releases"])
        for start in range(0, len(names), AT_ONCE):
            some = names[start : start + AT_ONCE]
            paths = [path for folder in FOLDERS for name in some for path in self._files[folder].get(name, ())]
            at = [f"{self._path}/{path}" for path in paths]
            # Not `cat`, which takes a path with brackets for a pattern; in a bucket all requests are under way at once.
            self._fetched = dict(zip(paths, self.fs.cat_ranges(at, None, None, on_error="return"), strict=True))
            yield from some

    def list_names(self, path: str) -> list[str]:
        return sorted(self._children.get(path, ()))

    def read_json(self, path: str) -> Any | None:
        data = self._fetched.get(path)
        if data is None or isinstance(data, FileNotFoundError):
            return None
        if isinstance(data, Exception):
            raise data
        try:
            return json.loads(data)
        except ValueError:  # cut short, or no text
            return None
