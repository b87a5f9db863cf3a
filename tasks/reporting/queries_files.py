"""Which files of results a store has, as local files: those that are what they say they are.

A remote store's files are copied once into the cache folder, many at a time, under names that change with what they
hold. What is left out is told, with what to do: a file that was half written or is foreign, another version, other
types, or one that could not be fetched.
"""

import gc
import os
import secrets
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from infra.hashing import SHORT, digest_json
from infra.settings import cache_folder
from infra.storage import Store
from tasks.reporting.results import FOLDER
from tasks.reporting.results_schema import VERSION, VERSION_KEY, arrow_schema

SUFFIX = ".parquet"
TOLD = ("ETag", "etag", "size", "LastModified", "mtime")  # by which a remote file is known to be the same
REQUESTS = 32  # at once; what counts with a remote store is the wait for each
ANEW = (
    "delete it, and the dashboard writes it anew if the run's summary is still there (without the flips, the curve and "
    "the rows whose artifacts `tunefleet gc` has taken)"
)
IN_USE = 3600  # seconds that another process may go on with a copy that was followed by a newer one


class ResultFile(NamedTuple):
    name: str  # below the store's root, to be told
    columns: frozenset[str]


Files = dict[Path, ResultFile]


def result_files(store: Store) -> tuple[Files, list[str]]:
    """(files that can be read, by run id; why others cannot)."""
    files: Files = {}
    warnings = []
    look = _Look()
    with ThreadPoolExecutor(os.cpu_count() if store.is_local else REQUESTS) as threads:
        for name, (path, columns) in zip(*_looked_at(store, look, threads), strict=True):
            if isinstance(columns, str):
                warnings.append(f"{FOLDER}/{name} is left out: {columns}")
            else:
                files[path] = ResultFile(f"{FOLDER}/{name}", columns)
    return files, warnings


def _looked_at(store: Store, look: "_Look", threads: ThreadPoolExecutor) -> tuple[list[str], Any]:
    """(names of the folder's Parquet files, their paths and columns); unfinished ones begin with a dot: no results."""
    try:
        entries = store.fs.ls(f"{store.root}/{FOLDER}", detail=True)
    except FileNotFoundError:
        return [], []
    there = {Path(entry["name"]).name: entry for entry in entries}
    names = sorted(name for name in there if name.endswith(SUFFIX) and not name.startswith("."))
    folder = Path(store.root) / FOLDER if store.is_local else cache_folder() / FOLDER / digest_json(store.root)[:SHORT]

    def one(name: str) -> tuple[Path, frozenset[str] | str]:
        if store.is_local:
            return folder / name, look.columns(folder / name)
        try:
            path = _copied(store, there[name], folder / name.removesuffix(SUFFIX))
        except Exception as error:  # noqa: BLE001 - whatever the store's client raises for this one file
            return folder, f"it could not be fetched ({type(error).__name__}: {error})"
        return path, look.columns(path)

    return names, threads.map(one, names)


def _copied(store: Store, entry: Mapping[str, object], folder: Path) -> Path:
    told = digest_json({key: str(entry[key]) for key in TOLD if key in entry})[:SHORT]
    path = folder / f"{told}{SUFFIX}"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        beside = folder / f".{told}-{secrets.token_hex(8)}.part"  # several processes may fetch it at once
        store.fs.get_file(str(entry["name"]), str(beside))
        beside.replace(path)
        _remove_old(folder, path)
    return path


def _remove_old(folder: Path, newest: Path) -> None:
    for old in folder.iterdir():
        with suppress(FileNotFoundError):  # another process was faster
            if old != newest and time.time() - old.stat().st_mtime > IN_USE:
                old.unlink()


class _Look:
    """Looks whether a file is one of results. Most have the same columns: they are compared with the schema once."""

    def __init__(self) -> None:
        self._seen: list[tuple[Any, frozenset[str] | str]] = []
        self._one_at_a_time = threading.Lock()

    def columns(self, path: Path) -> frozenset[str] | str:
        """The file's columns, or why it is no file of results that can be read."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            file = pq.read_metadata(path)
        except (pa.ArrowException, OSError) as error:
            if getattr(error, "errno", None):  # of the machine: a file that went away, is not ours, a disk's fault
                return f"it cannot be opened ({error})"
            return f"no whole Parquet file ({str(error).splitlines()[0]}); {ANEW}"
        version = (file.metadata or {}).get(VERSION_KEY.encode())
        if version is None:
            return f"no results of Tunefleet: its metadata lack {VERSION_KEY!r}; move it to another folder"
        if version != VERSION.encode():
            told = version.decode(errors="replace")
            return (
                f"schema version {told}; this Tunefleet reads version {VERSION}. Show it with the Tunefleet that wrote "
                f"it; or {ANEW} in version {VERSION}"
            )
        with self._one_at_a_time:
            answer = next((answer for schema, answer in self._seen if schema.equals(file.schema)), None)
            if answer is None:
                answer = _columns(file.schema.to_arrow_schema())
                self._seen.append((file.schema, answer))
        del file
        gc.collect(0)  # pyarrow's metadata and their schema hold each other, half a megabyte for each file
        return answer


def _columns(there: Any) -> frozenset[str] | str:
    for wanted in arrow_schema():
        if wanted.name in there.names and there.field(wanted.name).type != wanted.type:
            return f"column {wanted.name} has other types than version {VERSION}; {ANEW}"
    if missing := [name for name in ("run_id", "name", "position") if name not in there.names]:
        return f"it has no column {missing[0]}; {ANEW}"
    return frozenset(there.names)
