"""Channels: which release of a name stands, who moved it there, and how it is taken back.

    channels/<name>/<channel>/<sequence>.json    one file for each move; the highest number is where it stands

A move is the next file, created exclusively: of two at once one is told that it lost. Nothing is overwritten, so the
files are also the history. The channel is moved in every place where the release stands first, and in the store last:
if that breaks off, the store still says what stood, and promoting again goes on where it stopped.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from pydantic import BaseModel, ConfigDict

from infra.errors import IntegrityError, RequestError, TunefleetError
from infra.hashing import SHORT
from infra.storage import Store
from tasks.publishing.pointer import LostRaceError, pointer_to
from tasks.publishing.release import MANIFEST, Published
from tasks.recipe.schema import Artifact, Destination
from tasks.registry.places import of_published, published_digest
from tasks.registry.records import ReleaseRecord, current, publications, releases, whoever

CHANNEL = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
NUMBERED = re.compile(r"v\d+")


class Move(BaseModel):
    """One step of a channel."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sequence: int  # from 1
    number: int  # of the release that stands from here on
    at: str  # UTC
    by: str  # user and machine
    reason: str | None = None


@dataclass(frozen=True)
class Promotion:
    """What a promotion did."""

    move: Move
    before: int | None  # number of the release that stood before; None if none did
    moved: list[str]  # the places whose channel now leads to the release
    left: list[str]  # those that do not hold it, and what they do hold


def history(store: Store, name: str, channel: str) -> list[Move]:
    """The moves of a channel, the first one first; none if there is no such channel."""
    folder = f"channels/{name}/{channel}"
    moves = []
    for sequence in sorted(int(Path(entry).stem) for entry in store.list_names(folder) if Path(entry).stem.isdigit()):
        content = store.read_json(f"{folder}/{sequence}.json")
        if content is None:
            raise IntegrityError(f"{store.root}/{folder}/{sequence}.json is damaged; delete it to leave out that move.")
        moves.append(Move.model_validate({**content, "sequence": sequence}))
    return moves


def standing(store: Store, record: ReleaseRecord) -> list[str]:
    """The store's channels that stand at a release."""
    names = store.list_names(f"channels/{record.name}")
    return [channel for channel in names if current(store, record.name, channel) == record.number]


def move(store: Store, record: ReleaseRecord, channel: str, *, expected: int | None, reason: str | None = None) -> Move:
    """Let the store's channel stand at `record`; nothing is written if it does already.

    `expected` is the number of the release that stood when the caller looked, None if there was none. LostRaceError if
    another one stands by now, or somebody else makes the same step first.
    """
    moves = history(store, record.name, channel)
    last = moves[-1] if moves else None
    if last and last.number == record.number:
        return last
    sequence = last.sequence + 1 if last else 1
    step = Move(sequence=sequence, number=record.number, at=_now(), by=whoever(), reason=reason)
    content = step.model_dump(exclude={"sequence"})
    path = f"channels/{record.name}/{channel}/{sequence}.json"
    if (last.number if last else None) != expected or not store.create_json(path, content):
        raise LostRaceError(
            f"the channel {channel} of {record.name} in {store.root} was moved by somebody else; see where it stands "
            f"(tunefleet list {record.name}), and if {record.version} is still wanted: "
            f"tunefleet promote {record.label} --to {channel}"
        )
    return step


def promote(store: Store, record: ReleaseRecord, channel: str, *, reason: str | None = None) -> Promotion:
    """Let `channel` lead to `record` in each place that holds all of it, then in the store.

    A place that fails does not keep the others from being moved, but the store's channel stays; the error says which
    were moved, and promoting again goes on with the rest.
    """
    _check_name(channel)
    moves = history(store, record.name, channel)
    before = moves[-1].number if moves else None
    whole, left = _places(store, record, before)
    moved: list[str] = []
    failed: list[TunefleetError] = []
    for place, published in whole.items():
        try:
            _point(place, record, channel, published)
            moved.append(_said(place))
        except TunefleetError as error:
            failed.append(error)
    if failed:
        _broke_off(record, channel, moved, failed)
    return Promotion(move(store, record, channel, expected=before, reason=reason), before, moved, left)


def rollback(store: Store, name: str, channel: str) -> Promotion:
    """Take the channel back to the release that stood before the one that stands now, as a further move.

    What was taken back once does not return: from 1, 2, 3, back to 2, the next step back is 1. RequestError if nothing
    stood before.
    """
    stood = _stood(history(store, name, channel))
    if len(stood) < 2:
        there = ", ".join(store.list_names(f"channels/{name}")) or "none"
        now = f"stands at v{stood[0]} and stood at nothing before" if stood else "has never been moved"
        raise RequestError(
            f"there is nothing to roll back to: {channel} of {name} {now}. Its channels: {there}; to let one stand at "
            f"any release: tunefleet promote {name}@VERSION --to {channel}"
        )
    current, previous = stood[-1], stood[-2]
    record = next((one for one in releases(store, name) if one.number == previous), None)
    if record is None:
        raise IntegrityError(f"the record of {name}@v{previous} is gone from {store.root}; promote another release.")
    return promote(store, record, channel, reason=f"rolled back from v{current} to v{previous}")


def _check_name(channel: str) -> None:
    if not CHANNEL.fullmatch(channel) or NUMBERED.fullmatch(channel):
        raise RequestError(
            f"{channel!r} cannot be a channel. Allowed: up to 64 lower-case letters, digits, . _ -, but not v and a "
            "number, which is how releases are called."
        )


def _stood(moves: Sequence[Move]) -> list[int]:
    """The releases that a channel would go back through, the current one last: a return undoes what came between."""
    stood: list[int] = []
    for one in moves:
        if one.number in stood:
            del stood[stood.index(one.number) + 1 :]
        else:
            stood.append(one.number)
    return stood


def _places(
    store: Store, record: ReleaseRecord, before: int | None
) -> tuple[dict[Destination, list[Published]], list[str]]:
    """The places that hold all of the release, and what is to be said of the others.

    Others are those with a part of it, and those where the release stands that the channel leaves.
    """
    holds = _by_place(store, record)
    wanted = sorted({what for found in holds.values() for what in found})
    whole = {place: list(found.values()) for place, found in holds.items() if sorted(found) == wanted}
    left = [
        f"{_said(place)} holds only {', '.join(sorted(found))} of {record.label}, not {', '.join(wanted)}"
        for place, found in holds.items()
        if place not in whole
    ]
    leaving = [one for one in releases(store, record.name) if one.number == before != record.number]
    for one in leaving:
        for place in _by_place(store, one).keys() - holds.keys():
            left.append(f"{_said(place)} holds {one.label}, but nothing of {record.label}: publish it there")
    return whole, left


def _by_place(store: Store, record: ReleaseRecord) -> dict[Destination, dict[Artifact, Published]]:
    """What of a release stands where, by the newest note of each place."""
    holds: dict[Destination, dict[Artifact, Published]] = {}
    for one in publications(store, record):
        place = one.place
        if place.folder is not None:  # a path that was relative, was so to the folder of that day
            place = place.model_copy(update={"folder": str(Path(one.published.uri).parents[1])})
        holds.setdefault(place, {})[one.published.what] = one.published
    return holds


def _point(place: Destination, record: ReleaseRecord, channel: str, published: Sequence[Published]) -> None:
    """Move the channel of one place, if the release still stands there."""
    from tasks.publishing import destinations  # boto3 and huggingface_hub, which looking at a channel does not need

    for one in published:
        there = of_published(one, place.endpoint_url)
        if published_digest(there.read(MANIFEST)) != one.digest:
            raise IntegrityError(
                f"{record.label} no longer stands at {there.uri} as {one.what}: publish it there again, or "
                f"promote another release. What is wrong says: tunefleet verify {record.label}"
            )
    what = [one.what for one in published]
    seen = destinations.seen(place, record.name, channel, what)
    pointer = pointer_to(
        {f"{one.what}-{one.digest[:SHORT]}": one for one in published},
        name=record.name,
        channel=channel,
        number=record.number,
        adapter=record.adapter.digest,
    )
    destinations.move(place, pointer, seen, {one.what: one.revision for one in published})


def _broke_off(record: ReleaseRecord, channel: str, moved: Sequence[str], failed: Sequence[TunefleetError]) -> NoReturn:
    where = f"{channel} leads to {record.label} in {', '.join(moved)}" if moved else f"{channel} was moved nowhere"
    raise type(failed[0])(
        f"{'; '.join(map(str, failed))}. {where}; the store's own {channel} stays as it was. "
        f"To go on: tunefleet promote {record.label} --to {channel}"
    )


def _said(place: Destination) -> str:
    return place.folder or place.s3 or f"hf://{place.hub}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
