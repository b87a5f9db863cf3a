"""Moving a channel, through the doors of a folder and a bucket: only from what was seen, only to what is there."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from botocore.client import BaseClient
from botocore.exceptions import ConnectionClosedError

from infra.errors import IntegrityError, RequestError, TransientError
from tasks.publishing import folder, s3
from tasks.publishing.pointer import LostRaceError, Pointer, Seen, dump, parse, pointer_to
from tasks.publishing.release import Published, Release
from tests.publishing import FILES, make_release
from tests.publishing.s3_server import BUCKET, S3Server

FILE = "capitals/channels/stable.json"


@dataclass(frozen=True)
class Door:
    """One destination, and what is under it."""

    publish: Callable[[Release], Published]
    seen: Callable[[], Seen]
    move: Callable[[Pointer, Seen], None]
    write: Callable[[str, bytes], Any]
    delete: Callable[[str], Any]
    names: Callable[[], set[str]]


@pytest.fixture
def out(tmp_path: Path) -> Door:
    place = tmp_path / "out"
    return Door(
        publish=lambda release: folder.publish(release, place),
        seen=lambda: folder.read_pointer(place, "capitals", "stable"),
        move=lambda pointer, seen: folder.move_pointer(place, pointer, seen),
        write=lambda path, data: (place / path).write_bytes(data),
        delete=lambda path: (place / path).unlink(),
        names=lambda: {path.name for path in (place / FILE).parent.iterdir()},
    )


@pytest.fixture
def bucket(s3: S3Server, tmp_path: Path) -> Door:
    prefix = f"pointers/{tmp_path.name}"
    return Door(
        publish=lambda release: publish_to_s3(s3, prefix, release),
        seen=lambda: read_from_s3(s3, prefix),
        move=lambda pointer, seen: move_on_s3(s3, prefix, pointer, seen),
        write=lambda path, data: s3.client.put_object(Bucket=BUCKET, Key=f"{prefix}/{path}", Body=data),
        delete=lambda path: s3.client.delete_object(Bucket=BUCKET, Key=f"{prefix}/{path}"),
        names=lambda: {Path(key).name for key in s3.keys(f"{prefix}/{Path(FILE).parent}")},
    )


def publish_to_s3(server: S3Server, prefix: str, release: Release) -> Published:
    return s3.publish(release, bucket=BUCKET, prefix=prefix, endpoint_url=server.endpoint_url)


def read_from_s3(server: S3Server, prefix: str) -> Seen:
    return s3.read_pointer(BUCKET, prefix, "capitals", "stable", server.endpoint_url)


def move_on_s3(server: S3Server, prefix: str, pointer: Pointer, seen: Seen) -> None:
    s3.move_pointer(BUCKET, prefix, pointer, seen, server.endpoint_url)


@pytest.fixture(params=["out", "bucket"])
def door(request: pytest.FixtureRequest) -> Door:
    found: Door = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def numbered(door: Door, tmp_path: Path) -> Callable[[int], Pointer]:
    """The pointer to a release of that number, which is published."""

    def publish(number: int) -> Pointer:
        files = FILES | {"adapter_config.json": b'{"r": %d}\n' % number}
        release = make_release(tmp_path / f"v{number}", files, number=number)
        published = door.publish(release)
        return pointer_to(
            {release.slug: published}, name="capitals", channel="stable", number=number, adapter=release.digest
        )

    return publish


def test_a_channel_is_made_and_moved(door: Door, numbered: Callable[[int], Pointer]):
    assert door.seen() == Seen(None, None)
    first, second = numbered(1), numbered(2)
    assert door.seen() == Seen(None, None)  # publishing alone moves nothing
    for pointer in (first, second, first):
        before = door.seen()
        door.move(pointer, before)
        assert door.seen().pointer == pointer
        assert door.seen().token != before.token
    assert door.names() == {"stable.json"}


def test_moving_to_where_it_stands_writes_nothing(door: Door, numbered: Callable[[int], Pointer]):
    pointer = numbered(1)
    door.move(pointer, Seen(None, None))
    before = door.seen()
    later = pointer.model_copy(update={"moved": "2099-01-01T00:00:00+00:00"})
    door.move(later, before)
    assert door.seen() == before
    door.move(later, Seen(None, None))  # somebody else has moved it to the same release in the meantime
    assert door.seen() == before


def test_a_channel_that_somebody_else_moved_is_left_there(door: Door, numbered: Callable[[int], Pointer]):
    first, second, third = numbered(1), numbered(2), numbered(3)
    nothing = door.seen()
    door.move(first, nothing)
    with pytest.raises(LostRaceError, match=r"promote capitals@v2 --to stable"):
        door.move(second, nothing)
    one = door.seen()
    assert one.pointer == first
    door.move(second, one)
    with pytest.raises(LostRaceError, match="moved by somebody else"):
        door.move(third, one)
    assert door.seen().pointer == second


def test_a_channel_that_is_gone_is_not_made_again(door: Door, numbered: Callable[[int], Pointer]):
    first, second = numbered(1), numbered(2)
    door.move(first, door.seen())
    one = door.seen()
    door.delete(FILE)
    with pytest.raises(LostRaceError):
        door.move(second, one)
    assert door.seen() == Seen(None, None)


def test_a_channel_never_leads_to_what_is_not_there(door: Door, numbered: Callable[[int], Pointer]):
    pointer = numbered(1)
    door.delete(f"capitals/{pointer.releases['adapter']}/tunefleet.json")
    with pytest.raises(RequestError, match="publish it first"):
        door.move(pointer, door.seen())
    assert door.seen() == Seen(None, None)


@pytest.mark.parametrize("data", [b"", b"{", b'{"layout": 1}'], ids=["empty", "cut off", "other keys"])
def test_a_damaged_channel_is_said(door: Door, numbered: Callable[[int], Pointer], data: bytes):
    door.move(numbered(1), door.seen())
    door.write(FILE, data)
    with pytest.raises(IntegrityError, match=r"stable\.json is no pointer of ours"):
        door.seen()


@pytest.mark.parametrize("slug", ["../../elsewhere", "/etc", "..", "", "a/b", "a\\b", "a\n"])
def test_a_channel_that_leads_elsewhere_is_refused(slug: str):
    pointer = {"name": "capitals", "channel": "stable", "number": 1, "adapter": "a" * 64, "moved": "now"}
    assert parse(json.dumps({**pointer, "releases": {"adapter": "adapter-0123456789ab"}}).encode(), "stable.json")
    with pytest.raises(IntegrityError, match=r"stable\.json is no pointer of ours"):
        parse(json.dumps({**pointer, "releases": {"adapter": slug}}).encode(), "stable.json")


def test_of_two_publishers_at_once_one_wins_and_the_other_says_so(door: Door, numbered: Callable[[int], Pointer]):
    pointers = [numbered(1), numbered(2)]
    for round_ in range(10):
        before = door.seen()
        # Both lead elsewhere than the one before: the number makes another release of the same files.
        racing = [replace_number(pointer, 10 * round_ + pointer.number) for pointer in pointers]
        start = threading.Barrier(2)

        def move(pointer: Pointer, before: Seen = before, start: threading.Barrier = start) -> str:
            start.wait()
            try:
                door.move(pointer, before)
            except LostRaceError:
                return "lost"
            return "won"

        with ThreadPoolExecutor(2) as pool:
            ended = list(pool.map(move, racing))
        assert sorted(ended) == ["lost", "won"]
        assert door.seen().pointer == racing[ended.index("won")]
    assert door.names() == {"stable.json"}


def replace_number(pointer: Pointer, number: int) -> Pointer:
    return pointer.model_copy(update={"number": number})


def test_a_move_whose_answer_was_lost_is_still_ours(
    s3: S3Server, bucket: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    release = make_release(tmp_path / "one")
    published = bucket.publish(release)
    pointer = pointer_to({release.slug: published}, name="capitals", channel="stable", number=1, adapter=release.digest)
    call, lost = BaseClient._make_api_call, []

    def no_answer(client: Any, operation: str, arguments: dict[str, Any]) -> Any:
        answer = call(client, operation, arguments)
        if operation == "PutObject" and not lost:
            lost.append(arguments["Key"])
            raise ConnectionClosedError(endpoint_url=s3.endpoint_url)
        return answer

    monkeypatch.setattr(BaseClient, "_make_api_call", no_answer)
    nothing = bucket.seen()
    with pytest.raises(TransientError):
        bucket.move(pointer, nothing)
    bucket.move(pointer, nothing)  # the task tries again with what it had seen
    assert bucket.seen().pointer == pointer
    assert len(lost) == 1


def test_a_pointer_that_a_killed_publisher_left_beside_is_overwritten(tmp_path: Path):
    release = make_release(tmp_path / "one")
    published = folder.publish(release, tmp_path / "out")
    pointer = pointer_to({release.slug: published}, name="capitals", channel="stable", number=1, adapter=release.digest)
    file = tmp_path / "out" / FILE
    file.parent.mkdir()
    (file.parent / ".stable.json.new").write_bytes(dump(pointer)[:20])
    folder.move_pointer(tmp_path / "out", pointer, Seen(None, None))
    assert [path.name for path in file.parent.iterdir()] == ["stable.json"]
    assert folder.read_pointer(tmp_path / "out", "capitals", "stable").pointer == pointer
