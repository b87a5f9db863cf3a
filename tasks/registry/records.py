"""The registry: which releases there are, counted by name; what each is, came from and was allowed by.

    releases/<name>/<number>/release.json        written once, by whoever creates it first
    releases/<name>/<number>/published/<id>.json  where it went, a file for each place
    channels/<name>/<channel>/<sequence>.json    which release stands, each move a further file; see channels.py

A release is an adapter that passed, or that a person let through with a reason. The same adapter released again, for
the same reason, is the same release: numbers say what changed, not how often somebody pressed a button.
"""

import getpass
import re
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from infra.errors import IntegrityError, RequestError
from infra.hashing import SHORT, digest_json
from infra.storage import ArtifactRef, Store
from tasks.publishing.release import Published
from tasks.recipe.schema import Destination
from tasks.registry.inventory import rebased

VERSIONED = re.compile(r"^(?P<name>[a-z0-9][a-z0-9._-]*)(?:@(?P<version>[\w.-]+))?$")


class Override(BaseModel):
    """Why a release left without a PASS, and who said so."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: str
    by: str  # user and machine
    at: str  # UTC


class ReleaseRecord(BaseModel):
    """One release, as it was decided. Everything in it is plain and final; where it went is told beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    number: int  # from 1
    adapter: ArtifactRef
    base: ArtifactRef
    base_model: str
    base_revision: str | None
    data: ArtifactRef
    verdict: ArtifactRef  # holds verdict.json and the documents that changed
    verdict_says: str  # PASS, or what was overridden
    override: Override | None
    method: str
    recipe: dict[str, Any]  # the resolved recipe
    run_id: str
    git_commit: str | None
    created: str  # UTC

    @property
    def version(self) -> str:
        return f"v{self.number}"

    @property
    def label(self) -> str:
        return f"{self.name}@{self.version}"


class Publication(BaseModel):
    """One place where files of a release stand."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    place: Destination
    published: Published
    at: str = ""  # UTC; set when it is noted


def register(store: Store, **facts: Any) -> ReleaseRecord:
    """The release with these facts (all of ReleaseRecord's but the number), under the next free number of its name.

    One that stands with the same adapter and the same reason for an override is returned as it is.
    """
    wanted = ReleaseRecord(number=1, **facts)
    while True:
        standing = releases(store, wanted.name)
        for one in reversed(standing):
            if one.adapter.digest == wanted.adapter.digest and _reason(one) == _reason(wanted):
                return one
        number = max((one.number for one in standing), default=0) + 1
        record = wanted.model_copy(update={"number": number})
        path = f"releases/{record.name}/{number}/release.json"
        if store.create_json(path, record.model_dump(mode="json")):
            return record
        if store.read_json(path) is None:  # there, and not of somebody who was faster
            raise IntegrityError(
                f"{store.root}/{path} is damaged, and what {record.label} is cannot be known. Put it back from a copy; "
                f"if there is none, delete the folder {store.root}/releases/{record.name}/{number}."
            )


def _reason(record: ReleaseRecord) -> str | None:
    return record.override.reason if record.override else None


def releases(store: Store, name: str | None = None) -> list[ReleaseRecord]:
    """Of one name or of all, by name and number; their artifacts as this store has them, wherever it was before."""
    names = [name] if name else store.list_names("releases")
    found = []
    for one in names:
        for number in sorted(int(entry) for entry in store.list_names(f"releases/{one}") if entry.isdigit()):
            content = store.read_json(f"releases/{one}/{number}/release.json")
            if content is not None:
                record = ReleaseRecord.model_validate(content)
                refs = ("adapter", "base", "data", "verdict")
                found.append(record.model_copy(update={ref: rebased(store, getattr(record, ref)) for ref in refs}))
    return found


def place_of_publication(publication: Publication) -> Destination:
    """Where it went, in one wording: two recipes may write the same place with a slash more, or a relative path."""
    place = publication.place
    if place.folder is not None:  # a path that was relative, was so to the folder of that day
        return Destination(folder=str(Path(publication.published.uri).parents[1]))
    if place.s3 is not None:
        bucket, _, prefix = place.s3.removeprefix("s3://").partition("/")
        endpoint_url = place.endpoint_url.rstrip("/") if place.endpoint_url else None
        return Destination(s3=f"s3://{bucket}/{prefix.strip('/')}".rstrip("/"), endpoint_url=endpoint_url)
    return Destination(hub=place.hub)  # private or not, it is the same repository


def add_publication(store: Store, record: ReleaseRecord, publication: Publication) -> None:
    """Note that files of `record` stand there now."""
    published = publication.published
    where = {"uri": published.uri, "digest": published.digest}
    if server := place_of_publication(publication).endpoint_url:  # buckets of two servers may have one name
        where["endpoint_url"] = server
    name = digest_json(where)[:SHORT]
    content = {**publication.model_dump(mode="json"), "at": datetime.now(UTC).isoformat(timespec="microseconds")}
    store.write_json(f"releases/{record.name}/{record.number}/published/{name}.json", content)


def publications(store: Store, record: ReleaseRecord) -> list[Publication]:
    """Where files of `record` were sent, in the order of time."""
    folder = f"releases/{record.name}/{record.number}/published"
    found = [
        Publication.model_validate(content)
        for name in store.list_names(folder)
        if (content := store.read_json(f"{folder}/{name}")) is not None
    ]
    return sorted(found, key=lambda one: one.at)


def find(store: Store, label: str) -> ReleaseRecord:
    """The release of `NAME@v3`, of `NAME@stable` (any channel), or the newest of `NAME`; else RequestError."""
    found = VERSIONED.match(label)
    if not found:
        raise RequestError(f"{label!r} names no release. Allowed: NAME, NAME@v3, NAME@stable.")
    name, version = found["name"], found["version"]
    standing = releases(store, name)
    if not standing:
        known = ", ".join(store.list_names("releases")) or "none yet"
        raise RequestError(f"there is no release of {name!r} in {store.root}; released are: {known}.")
    if version is None:
        return standing[-1]
    number = int(version[1:]) if re.fullmatch(r"v\d+", version) else current(store, name, version)
    for one in standing:
        if one.number == number:
            return one
    versions, channels = ", ".join(one.version for one in standing), ", ".join(store.list_names(f"channels/{name}"))
    raise RequestError(f"{label!r} is not there: {name} has {versions}, and the channels {channels or '(none)'}.")


def whoever() -> str:
    """Who does this, for the record: user and machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user has no name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def current(store: Store, name: str, channel: str) -> int | None:
    """The number of the release that `channel` stands at; None if there is no such channel."""
    folder = f"channels/{name}/{channel}"
    moves = sorted(int(Path(entry).stem) for entry in store.list_names(folder) if Path(entry).stem.isdigit())
    if not moves:
        return None
    move = store.read_json(f"{folder}/{moves[-1]}.json")
    if move is None:
        raise IntegrityError(
            f"{store.root}/{folder}/{moves[-1]}.json is damaged; delete it to fall back to the move before."
        )
    return int(move["number"])
