"""Which files of results a store has, as local files: those that are what they say they are.

A remote store's files are copied once into the cache folder, under names that change with what they hold. What is left
out is told: a file that was half written or is foreign, another version, other types.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from infra.hashing import SHORT, digest_json
from infra.settings import cache_folder
from infra.storage import Store
from tasks.reporting.results import FOLDER
from tasks.reporting.results_schema import VERSION, VERSION_KEY, arrow_schema

SUFFIX = ".parquet"
TOLD = ("ETag", "etag", "size", "LastModified", "mtime")  # by which a remote file is known to be the same


Files = dict[Path, frozenset[str]]  # {a file of results: its columns}


def result_files(store: Store) -> tuple[Files, list[str]]:
    """(files that can be read, by run id; why others cannot)."""
    files: Files = {}
    warnings = []
    paths = _local(store)
    with ThreadPoolExecutor() as threads:
        for path, found in zip(paths, threads.map(_columns, paths), strict=True):
            if isinstance(found, str):
                warnings.append(f"{FOLDER}/{_name(store, path)} is left out: {found}")
            else:
                files[path] = found
    return files, warnings


def _name(store: Store, path: Path) -> str:
    return path.name if store.is_local else path.parent.name + SUFFIX


def _local(store: Store) -> list[Path]:
    """The folder's Parquet files; unfinished ones begin with a dot and do not count."""
    try:
        entries = store.fs.ls(f"{store.root}/{FOLDER}", detail=True)
    except FileNotFoundError:
        return []
    there = {Path(entry["name"]).name: entry for entry in entries}
    names = sorted(name for name in there if name.endswith(SUFFIX) and not name.startswith("."))
    if store.is_local:
        return [Path(store.root) / FOLDER / name for name in names]
    folder = cache_folder() / FOLDER / digest_json(store.root)[:SHORT]
    return [_copied(store, there[name], folder / name.removesuffix(SUFFIX)) for name in names]


def _copied(store: Store, entry: dict[str, object], folder: Path) -> Path:
    told = digest_json({key: str(entry[key]) for key in TOLD if key in entry})[:SHORT]
    path = folder / f"{told}{SUFFIX}"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        beside = folder / f".{told}.part"
        store.fs.get_file(str(entry["name"]), str(beside))
        for old in folder.glob(f"*{SUFFIX}"):
            old.unlink(missing_ok=True)
        beside.replace(path)
    return path


def _columns(path: Path) -> frozenset[str] | str:
    """The file's columns, or why it is no file of results that can be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        return f"no whole Parquet file ({str(error).splitlines()[0]})"
    version = (file.metadata or {}).get(VERSION_KEY.encode())
    if version is None:
        return f"no results of Tunefleet: its metadata lack {VERSION_KEY!r}"
    if version != VERSION.encode():
        return f"schema version {version.decode(errors='replace')}; this Tunefleet reads version {VERSION}"
    there = file.schema.to_arrow_schema()
    for wanted in arrow_schema():
        if wanted.name in there.names and there.field(wanted.name).type != wanted.type:
            return f"column {wanted.name} has other types than version {VERSION}"
    if missing := [name for name in ("run_id", "name", "position") if name not in there.names]:
        return f"it has no column {missing[0]}"
    return frozenset(there.names)
