"""Channels: where a reader finds the release that stands, and how it is moved without anybody seeing half of one.

    <destination>/<name>/channels/stable.json   in a folder or on S3
    the tag `stable`                            on the Hub

A publisher reads the pointer before it sends anything, sends all files, and moves the pointer last, only if it is still
the one that was read. So a reader follows it to the old release or to the new one, whatever happened to the publisher,
and of two publishers at once one is told that it lost.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.errors import IntegrityError, TunefleetError
from tasks.publishing.release import Published

# A name in the folder that `channels` stands in: whoever may write there must not lead readers elsewhere.
Slug = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")]


class LostRaceError(TunefleetError):
    """Somebody else moved the pointer since it was read; the release is there, but the channel is not moved to it."""


class Pointer(BaseModel):
    """What `stable.json` says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layout: int = 1
    name: str  # of the adapter
    channel: str
    number: int  # of the release
    adapter: str  # digest of the adapter that it is or was made from
    releases: dict[str, Slug]  # {what: slug}, folders beside `channels`
    moved: str  # when, UTC


@dataclass(frozen=True)
class Seen:
    """A pointer as it was read: its content, and what the place needs to tell whether it is still the same."""

    pointer: Pointer | None
    token: Any  # None: there was none


def pointer_to(published: dict[str, Published], *, name: str, channel: str, number: int, adapter: str) -> Pointer:
    """The pointer to what was just published, {slug: where it is}."""
    return Pointer(
        name=name,
        channel=channel,
        number=number,
        adapter=adapter,
        releases={one.what: slug for slug, one in published.items()},
        moved=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def path_of(name: str, channel: str) -> str:
    return f"{name}/channels/{channel}.json"


def dump(pointer: Pointer) -> bytes:
    return (pointer.model_dump_json(indent=1) + "\n").encode()


def parse(data: bytes, where: str) -> Pointer:
    """IntegrityError if `data` is no pointer."""
    try:
        return Pointer.model_validate_json(data)
    except ValidationError as error:
        raise IntegrityError(f"{where} is no pointer of ours; move it away and publish again: {error}") from error


def same_release(one: Pointer | None, other: Pointer) -> bool:
    """Whether both lead to the same files, whenever they were moved."""
    return one is not None and one.model_dump(exclude={"moved"}) == other.model_dump(exclude={"moved"})


def lost(pointer: Pointer, where: str) -> LostRaceError:
    return LostRaceError(
        f"{where} was moved by somebody else while {pointer.name} v{pointer.number} was being published. All files of "
        f"it are there; to move the channel to it: tunefleet promote {pointer.name}@v{pointer.number} "
        f"--to {pointer.channel}"
    )
