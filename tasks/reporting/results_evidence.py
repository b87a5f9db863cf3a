"""What the store still has of a run's adapters: manifests, flips, training rows. None of what is gone or altered.

A file with a bad line is passed over: it hides neither its neighbours nor the run.

Manifests are read many at once, because a remote store takes its time for each: those that a summary names, then those
that these were made from.
"""

import json
from collections.abc import Iterable
from typing import Any

from infra.hashing import SHORT
from infra.storage import MANIFEST, Store, is_whole
from tasks.reporting.results_schema import COLUMNS, FLIP, shaped

SHOWN_FLIPS = 20  # of a task
SHOWN_ROWS = 5
LONGEST = 4000  # characters of a text
TRAIN = "train.jsonl"
BAD_LINE = (ValueError, KeyError, TypeError, AttributeError)  # cut, or not of the kind that is read here

Json = dict[str, Any]


def place_of_uri(uri: str | None) -> str | None:
    """kind/name-digest: a store that was moved keeps its artifacts' places below the root."""
    return "/".join(uri.rstrip("/").split("/")[-2:]) if uri else None


def place_of_ref(ref: Json | None) -> str | None:
    return f"{ref['kind']}/{ref['name']}-{ref['digest'][:SHORT]}" if ref else None


class Evidence:
    """The artifacts of one store, by place."""

    def __init__(self, store: Store):
        self.store = store
        self._manifests: dict[str, Json | None] = {}

    def look(self, places: Iterable[str | None]) -> None:
        """Read the manifests of these places, so that asking for them takes no time."""
        wanted = sorted({place for place in places if place and place not in self._manifests})
        found = self._read([f"{place}/{MANIFEST}" for place in wanted])
        for place in wanted:
            manifest = _json(found.get(f"{place}/{MANIFEST}"))
            self._manifests[place] = manifest if is_whole(manifest) else None

    def manifest(self, place: str | None) -> Json | None:
        if place is None:
            return None
        if place not in self._manifests:
            self.look([place])
        return self._manifests[place]

    def size(self, place: str | None) -> int | None:
        """Bytes of an artifact's files."""
        manifest = self.manifest(place)
        return sum(file["size"] for file in manifest["files"]) if manifest else None

    def comparison_place(self, verdict_place: str | None) -> str | None:
        """Of the comparison that a verdict rests on; both have the name of the side that was judged."""
        manifest = self.manifest(verdict_place)
        own = (manifest or {}).get("upstream", {}).get("own")
        return f"comparisons/{manifest['name']}-{own[:SHORT]}" if manifest and own else None

    def score_places(self, comparison_place: str | None) -> dict[str, list[str]]:
        """{task: the places of the adapter's own records}, several where they were made in parts."""
        manifest = self.manifest(comparison_place)
        found: dict[str, list[str]] = {}
        for role, digest in (manifest or {}).get("upstream", {}).items():
            who, _, rest = role.partition(" ")
            task = rest.rpartition(" ")[0]
            if manifest and who == "own" and task:
                found.setdefault(task, []).append(f"scores/{manifest['name']}-{task}-{digest[:SHORT]}")
        return found

    def seconds_by_task(self, comparison_place: str | None) -> dict[str, float]:
        """Device-seconds that answering took the adapter; a task is left out if some of its records are gone."""
        found = {}
        for task, places in self.score_places(comparison_place).items():
            parts = [((self.manifest(place) or {}).get("facts") or {}).get("scored_in_seconds") for place in places]
            if None not in parts:
                found[task] = float(sum(part for part in parts if part is not None))
        return found

    def flips(self, verdict_place: str | None) -> list[Json] | None:
        """The first flips of each task whose file can be read; None if there is none such."""
        manifest = self.manifest(verdict_place)
        if manifest is None:
            return None
        files = [f"{verdict_place}/{file['path']}" for file in manifest["files"] if file["path"].startswith("flips/")]
        texts = self._read(files)
        found = [_flips(file.rpartition("/")[2].removesuffix(".jsonl"), texts.get(file)) for file in files]
        whole = [flips for flips in found if flips is not None]
        return [flip for flips in whole for flip in flips] if whole or not files else None

    def rows(self, data_place: str | None) -> list[Json] | None:
        """The first training rows."""
        if self.manifest(data_place) is None:
            return None
        try:
            with self.store.fs.open(f"{self.store.root}/{data_place}/{TRAIN}", "rb", block_size=2**18) as stream:
                lines = [line for _ in range(SHOWN_ROWS) if (line := stream.readline()).strip()]
        except FileNotFoundError:
            return None
        try:
            return [_row(json.loads(line)) for line in lines]
        except BAD_LINE:
            return None

    def _read(self, paths: list[str]) -> dict[str, bytes]:
        """{path: content} of those that are there."""
        # Not `cat`, which takes a store's path with brackets for a pattern.
        at = [f"{self.store.root}/{path}" for path in paths]
        found = dict(zip(paths, self.store.fs.cat_ranges(at, None, None, on_error="return"), strict=True))
        for data in found.values():
            if isinstance(data, Exception) and not isinstance(data, FileNotFoundError | NotADirectoryError):
                raise data
        return {path: data for path, data in found.items() if isinstance(data, bytes)}


def _json(data: bytes | None) -> Any:
    try:
        return json.loads(data) if data else None
    except ValueError:
        return None


def _flips(task: str, text: bytes | None) -> list[Json] | None:
    """The first flips of a file; None if it is gone, or one of them is none."""
    if text is None:
        return None
    lines = [line for line in text.split(b"\n") if line]
    try:
        return [shaped(FLIP, _flip(task, json.loads(line))) for line in lines[:SHOWN_FLIPS]]
    except BAD_LINE:
        return None


def _flip(task: str, flip: Json) -> Json:
    base, adapter = flip["base"], flip["adapter"]
    whole = {"prompt": flip["prompt"], "target": flip["target"], "base": base["text"], "adapter": adapter["text"]}
    texts = {key: None if text is None else str(text) for key, text in whole.items()}
    return {
        **{"task": task, "doc_id": flip["doc_id"], "kind": flip["kind"], "moved": flip["moved"]},
        "prompt": texts["prompt"] and texts["prompt"][-LONGEST:],  # the question stands at its end
        "target": _start(texts["target"]),
        "right_choice": flip["right_choice"],
        **{"base_text": _start(texts["base"]), "base_choice": base["choice"], "base_score": base["score"]},
        **{"adapter_text": _start(texts["adapter"]), "adapter_choice": adapter["choice"]},
        "adapter_score": adapter["score"],
        "cut": any(len(text) > LONGEST for text in texts.values() if text),
    }


def _start(text: str | None) -> str | None:
    return text and text[:LONGEST]


def _row(row: Json) -> Json:
    """A training row as its parts: messages with their roles, or texts with the name of their column."""
    parts = []
    for column, value in row.items():
        if column == "id":
            continue
        said = value if isinstance(value, list) else [{"role": column, "content": value}]
        for one in said:
            role = column if column in ("chosen", "rejected") else one["role"]
            parts.append({"role": role, "text": _start(str(one["content"])), "trained": column != "prompt"})
    return dict(shaped(COLUMNS["rows_sample"][0], {"id": row.get("id"), "parts": parts}))
