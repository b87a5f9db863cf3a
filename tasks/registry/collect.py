"""Garbage: what nothing refers to any more, found by following references from what must stay.

    releases, their published artifacts, the runs' summaries   -> roots
    each artifact -> what its manifest says it was made from   -> reached
    scores, comparisons, verdicts, ... of what is reached      -> kept as evidence: small, and dear to make again

What remains is garbage if it is old, and no living run made it or works on it. A run that finds an artifact makes its
index entry young (Store.lookup); what was touched since the oldest living run began is in use, however long ago that
is. A run is seen by its claims, and between two stages it holds none for a moment: then only `older_than_days` protects
what it found, which should therefore be longer than a run takes. Deleting starts with what was made last:
nothing that stands ever names what is gone. The index entry goes first, the manifest next, the files last, so that a
reader finds an artifact or none. Claims stay: their numbers are what keeps a writer out that was paused for days.
"""

import math
import stat
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from infra.errors import IntegrityError, RequestError
from infra.settings import scratch_folder
from infra.storage import MANIFEST, Store
from tasks.publishing.release import MANIFEST as PUBLISHED
from tasks.registry.inventory import DIGEST, Inventory, Manifest, made_from

EVIDENCE = {"scores", "comparisons", "verdicts", "judgements", "preflights", "replays"}
UNFINISHED = "unfinished"
WORK = "work"
REMOTE = ("checkpoints", "packs")  # kinds of work that a remote store holds, too
LEFT = "left by work that is over"
INDEX = "index"
_DAY = 24 * 3600.0  # seconds
_SKEW = 15 * 60.0  # seconds that clocks may differ by: as many as S3 allows


@dataclass(frozen=True)
class Garbage:
    """Something that may go."""

    path: str  # under the store's root
    kind: str  # of artifact; or unfinished, index, work
    bytes: int
    why: str
    entries: tuple[str, ...] = ()  # of the index, for all keys that led to it
    before: float = 0.0  # seconds since 1970; used since then, it stays


@dataclass(frozen=True)
class Living:
    """Who is at work just now."""

    runs: frozenset[str]
    keys: frozenset[str]  # stage/key

    @property
    def since(self) -> float:
        """When the oldest of these runs began, in seconds since 1970; infinity if there is none."""
        return min((began for run in self.runs if (began := _began(run)) is not None), default=math.inf) - _SKEW

    def works_on(self, path: str) -> bool:
        """Whether a folder of work belongs to a living run or to a key that is claimed."""
        parts = path.split("/")
        if parts[1] == "cells":  # all of an evaluation are scored under the claim of one
            return any(key.startswith("score/") for key in self.keys)
        return parts[1] in self.runs or (len(parts) > 2 and any(key.endswith(f"/{parts[2]}") for key in self.keys))


def find_garbage(store: Store, *, older_than_days: float = 1.0, keep_runs: int | None = None) -> list[Garbage]:
    """What may be deleted, in the order in which it should be.

    Only the newest `keep_runs` summaries count as references; all, if it is None. IntegrityError if something that
    refers cannot be read: then nobody knows what it refers to.
    """
    if not older_than_days >= 0 or (keep_runs is not None and keep_runs < 0):
        raise RequestError(f"got {older_than_days:g} days and {keep_runs} runs; allowed are 0 and more.")
    living = who_lives(store)
    before = min(time.time() - older_than_days * _DAY, living.since)
    inventory = Inventory(store)
    entries = _index(store)
    kept = _kept(inventory, roots(store, inventory, keep_runs))
    garbage = [
        (_made(store, place, manifest), one)
        for place in inventory.places
        if (manifest := inventory.manifest(place)) is None or manifest["digest"] not in kept
        if (one := _unreferenced(store, place, manifest, tuple(entries.get(place, ())), living, before))
    ]
    found = [one for _, one in sorted(garbage, key=lambda pair: pair[0], reverse=True)]
    found += [
        Garbage(entry, INDEX, _size(store, entry), f"{place or 'what it led to'} is gone", (entry,), before)
        for place, paths in sorted(entries.items())
        if place not in inventory.places
        for entry in paths
        if "/".join(_stage_and_key(entry)) not in living.keys and _modified(store, entry) <= before
    ]
    return found + list(_left_work(store, living, before))


def delete(store: Store, one: Garbage) -> bool:
    """Take it away; False if somebody has found it or works on it since it was looked for.

    All keys that lead to it are claimed meanwhile, so that nobody makes it again between one file and the next.
    """
    living = who_lives(store) if one.kind in (WORK, UNFINISHED) else None
    if living and (living.works_on(one.path) if one.kind == WORK else living.keys):
        return False
    with ExitStack() as held:
        for entry in one.entries:
            stage, key = _stage_and_key(entry)
            if not held.enter_context(store.held(stage, key, run_id="gc")):
                return False
        leading = [entry for entry in one.entries if one.kind == INDEX or _leads_to(store, entry) == one.path]
        if any(_modified(store, entry) > one.before for entry in leading):
            return False
        for path in [*leading, *([] if one.kind in (WORK, INDEX) else [f"{one.path}/{MANIFEST}"])]:
            with suppress(FileNotFoundError):
                store.fs.rm_file(f"{store.root}/{path}")
        with suppress(FileNotFoundError):  # on S3 a folder is gone with its last object
            store.fs.rm(f"{store.root}/{one.path}", recursive=True)
    return True


def who_lives(store: Store) -> Living:
    """The runs and keys of all claims whose holder is alive."""
    held = {
        f"{stage}/{key}": holder["run_id"]
        for stage in store.list_names("claims")
        for key in store.list_names(f"claims/{stage}")
        if (holder := store.holder(stage, key))
    }
    return Living(frozenset(held.values()), frozenset(held))


def _began(run: str) -> float | None:
    """A run's id starts with its time; None for an id that is no run's."""
    try:
        return datetime.strptime(run[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def roots(store: Store, inventory: Inventory, keep_runs: int | None) -> set[str]:
    """Digests that releases, publications and finished runs name, by digest or by folder."""
    named: set[str] = set()
    for name in store.list_names("releases"):
        for number in filter(str.isdigit, store.list_names(f"releases/{name}")):
            folder = f"releases/{name}/{number}"
            named |= _words(_read(store, f"{folder}/release.json"))
            for file in _json_in(store, f"{folder}/published"):
                named |= _words(_read(store, f"{folder}/published/{file}"))
    finished = [run for run in store.list_names("runs") if "summary.json" in store.list_names(f"runs/{run}")]
    for run in finished if keep_runs is None else finished[len(finished) - min(keep_runs, len(finished)) :]:
        named |= _words(_read(store, f"runs/{run}/summary.json"))
    digests = {word for word in named if DIGEST.fullmatch(word)}
    ends = {"/".join(word.rstrip("/").split("/")[-2:]) for word in named}  # a store may have been moved
    manifests = [inventory.manifest(place) for place in inventory.places if place in ends]
    return digests | {manifest["digest"] for manifest in manifests if manifest}


def _kept(inventory: Inventory, starts: set[str]) -> set[str]:
    reached = inventory.reached(sorted(starts))
    for digest in reached:
        if altered := inventory.altered(digest):
            raise IntegrityError(
                f"{inventory.store.root}/{altered[0]}: the manifest was altered, and what it refers to is not known. "
                "Nothing is collected. Delete that folder, if it can be made again, or put the manifest back."
            )
    kept = {digest for digest, manifests in reached.items() if manifests}
    waiting = [
        manifest
        for place in inventory.places
        if place.split("/")[0] in EVIDENCE and (manifest := inventory.manifest(place))
    ]
    while more := {one["digest"] for one in waiting if set(made_from(one).values()) <= kept} - kept:
        kept |= more
    return kept


def _unreferenced(
    store: Store, place: str, manifest: Manifest | None, entries: tuple[str, ...], living: Living, before: float
) -> Garbage | None:
    """Unless it is young, or somebody living made it or works on it, or it is a release that was published here."""
    if manifest is None:
        if PUBLISHED in store.list_names(place):  # of an adapter that is called like a kind
            return None
        # While anybody is at work, files without a manifest may be on their way in.
        times = [_time(info) for info in _files(store, place)]
        if living.keys or not times or max(times) > before:
            return None
        return Garbage(place, UNFINISHED, _size(store, place), "it was never completed, or altered", entries, before)
    stage = manifest["stage"]
    used = [f"{place}/{MANIFEST}", *entries]
    entries = tuple({*entries, f"index/{stage['name']}/{stage['key']}.json"})  # it may be about to be written
    keys = {"/".join(_stage_and_key(entry)) for entry in entries}
    if manifest["run_id"] in living.runs or keys & living.keys or any(_modified(store, one) > before for one in used):
        return None
    why = f"nothing refers to it; made by run {manifest['run_id']}"
    return Garbage(place, manifest["kind"], _size(store, place), why, entries, before)


def _left_work(store: Store, living: Living, before: float) -> Iterator[Garbage]:
    """What runs left in the store. In a remote one, checkpoints and packs; other work lies on each machine."""
    if not store.is_local:
        for path in (f"{WORK}/{kind}/{key}" for kind in REMOTE for key in store.list_names(f"{WORK}/{kind}")):
            files = _files(store, path)
            if files and max(map(_time, files)) <= before and not living.works_on(path):
                yield Garbage(path, WORK, sum(int(info["size"]) for info in files), LEFT, (), before)
        return
    work = scratch_folder(store)
    shared = ("cells", *REMOTE)
    for one in sorted([*(path for path in work.glob("*") if path.name not in shared),
                       *(path for name in shared for path in work.glob(f"{name}/*"))]):  # fmt: skip
        if one.name == "channels" or (one / PUBLISHED).exists():  # of a release of that name, published to this folder
            continue
        path = one.relative_to(store.root).as_posix()
        with suppress(FileNotFoundError):  # gone meanwhile: whoever worked there is alive
            states = [file.lstat() for file in (one, *one.rglob("*"))]
            size = sum(state.st_size for state in states if not stat.S_ISDIR(state.st_mode))
            old = max(state.st_mtime for state in states) <= before
            if size and old and not living.works_on(path):  # finished runs leave an empty folder
                yield Garbage(path, WORK, size, LEFT, (), before)


def _index(store: Store) -> dict[str, list[str]]:
    """{artifact's folder: the entries that lead to it}; an unreadable entry leads to ""."""
    found: dict[str, list[str]] = defaultdict(list)
    for stage in store.list_names("index"):
        for file in _json_in(store, f"index/{stage}"):
            if not DIGEST.fullmatch(file.removesuffix(".json")):
                continue
            entry = f"index/{stage}/{file}"
            found[_leads_to(store, entry)].append(entry)
    return found


def _leads_to(store: Store, entry: str) -> str:
    content = store.read_json(entry)
    return str(content.get("path") or "") if isinstance(content, dict) else ""


def _json_in(store: Store, folder: str) -> list[str]:
    return [name for name in store.list_names(folder) if name.endswith(".json")]


def _stage_and_key(entry: str) -> tuple[str, str]:
    _, stage, file = entry.split("/")
    return stage, file.removesuffix(".json")


def _read(store: Store, path: str) -> Any:
    content = store.read_json(path)
    if content is None:
        raise IntegrityError(
            f"{store.root}/{path} cannot be read, and what it refers to is not known. Nothing is collected. "
            "Mend it or delete it."
        )
    return content


def _words(content: Any) -> set[str]:
    """Every string in a piece of JSON."""
    if isinstance(content, str):
        return {content}
    parts = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    return {word for part in parts for word in _words(part)}


def _files(store: Store, path: str) -> list[dict[str, Any]]:
    found = store.fs.find(f"{store.root}/{path}", detail=True).values()
    return [info for info in found if info["type"] == "file"]  # some S3 servers list empty folders


def _size(store: Store, path: str) -> int:
    return sum(int(info["size"] or 0) for info in _files(store, path))


def _made(store: Store, place: str, manifest: Manifest | None) -> float:
    return _modified(store, f"{place}/{MANIFEST}") if manifest else 0.0


def _modified(store: Store, path: str) -> float:
    """Seconds since 1970; 0 for what is not there."""
    try:
        return float(store.fs.modified(f"{store.root}/{path}").timestamp())
    except FileNotFoundError:
        return 0.0


def _time(info: dict[str, Any]) -> float:
    return float(info["mtime"]) if "mtime" in info else float(info["LastModified"].timestamp())
