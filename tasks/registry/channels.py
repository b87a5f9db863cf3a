"""Channels: which release of a name stands, who moved it there, and how it is taken back.

    channels/<name>/<channel>/<sequence>.json    one file for each move; the highest number is where it stands

A move is the next file, created exclusively: of two at once one is told that it lost. Nothing is overwritten, so the
files are also the history. All places are looked at first (sites.py), then the channel is moved in each where the
release stands, and in the store last: if that breaks off, the store still says what stood, and promoting again goes on
where it stopped.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from pydantic import BaseModel, ConfigDict

from infra.errors import IntegrityError, RequestError, TunefleetError
from infra.storage import Store
from tasks.publishing.pointer import LostRaceError
from tasks.registry.records import ReleaseRecord, current, releases, whoever
from tasks.registry.sites import Site, look

CHANNEL = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
BRANCH = "main"
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
    left: list[str]  # those that were not moved, and why
    behind: list[str]  # those of them that still lead to the release that stood before, or may do so


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
    """Let `channel` lead to `record` in each place that holds of it all that the channel leads to, then in the store.

    A place that fails does not keep the others from being moved, but the store's channel stays; the error says which
    were moved, and promoting again goes on with the rest.
    """
    _check_name(channel)
    before = current(store, record.name, channel)
    return _promote(store, record, channel, look(store, record, channel, leaving=before), before, reason)


def _promote(
    store: Store, record: ReleaseRecord, channel: str, sites: Sequence[Site], before: int | None, reason: str | None
) -> Promotion:
    """To where the channel led in each place when it was looked at; if one was moved since, no further one is."""
    moved: list[str] = []
    left: list[str] = []
    behind: list[str] = []
    failed: list[TunefleetError] = []
    for site in sites:
        if why := site.lacks(record, channel):
            left.append(why)
            if site.may_lead_to(before):
                behind.append(site.uri)
            continue
        try:
            site.move(record, channel)
            moved.append(site.uri)
        except LostRaceError as error:  # all others go the same way: whoever was first here goes on
            failed.append(error)
            break
        except TunefleetError as error:
            failed.append(error)
    if failed:
        _broke_off(record, channel, moved, failed)
    return Promotion(move(store, record, channel, expected=before, reason=reason), before, moved, left, behind)


def rollback(store: Store, name: str, channel: str) -> Promotion:
    """Take the channel back to the release that stood before the one that stands now, as a further move.

    What was taken back once does not return: from 1, 2, 3, back to 2, the next step back is 1. RequestError if nothing
    stood before, or if a place does not stand where the store does: then "before" is not the same for both.
    """
    stood = _stood(history(store, name, channel))
    if len(stood) < 2:
        there = ", ".join(store.list_names(f"channels/{name}")) or "none"
        now = f"stands at v{stood[0]} and stood at nothing before" if stood else "has never been moved"
        raise RequestError(
            f"there is nothing to roll back to: {channel} of {name} {now}. Its channels: {there}; to let one stand at "
            f"any release: tunefleet promote {name}@VERSION --to {channel}"
        )
    standing, previous = stood[-1], stood[-2]
    record = next((one for one in releases(store, name) if one.number == previous), None)
    if record is None:
        raise IntegrityError(f"the record of {name}@v{previous} is gone from {store.root}; promote another release.")
    sites = look(store, record, channel, leaving=standing)
    apart = [one for one in sites if not one.leads_only_to(standing, previous) and not one.lacks(record, channel)]
    if apart:
        where = "; ".join(f"in {one.uri} at {one.standing}" for one in apart)
        raise RequestError(
            f"{channel} of {name} stands at v{standing} in the store, but {where}: a publication or promotion broke "
            f"off, or was made from another store. Nothing was moved. Say first what is to stand everywhere: "
            f"tunefleet promote {name}@v{standing} --to {channel}, and then roll back; or at once "
            f"tunefleet promote {name}@v{previous} --to {channel}"
        )
    return _promote(store, record, channel, sites, standing, f"rolled back from v{standing} to v{previous}")


def _check_name(channel: str) -> None:
    if not CHANNEL.fullmatch(channel) or NUMBERED.fullmatch(channel) or channel == BRANCH:
        raise RequestError(
            f"{channel!r} cannot be a channel. Allowed: up to 64 lower-case letters, digits, . _ -, but not v and a "
            f"number, which is how releases are called, and not {BRANCH}, which is the Hub's branch."
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


def _broke_off(record: ReleaseRecord, channel: str, moved: Sequence[str], failed: Sequence[TunefleetError]) -> NoReturn:
    where = f"{channel} leads to {record.label} in {', '.join(moved)}" if moved else f"{channel} was moved nowhere"
    raise type(failed[0])(
        f"{'; '.join(map(str, failed))}. {where}; the store's own {channel} stays as it was. "
        f"To go on: tunefleet promote {record.label} --to {channel}"
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
