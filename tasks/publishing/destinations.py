"""From a recipe's destinations to the three doors: folder, S3, Hub.

check -> (training) -> seen -> publish, once for each artifact -> move, last
"""

from collections.abc import Mapping, Sequence
from typing import Any

from infra.errors import Fault, TransientError
from tasks.publishing import folder, hub, s3
from tasks.publishing.pointer import Pointer, Seen
from tasks.publishing.release import Published, Release
from tasks.recipe.schema import Adapter, Artifact, Destination


def sent_of(adapter: Adapter, what: Sequence[Artifact]) -> tuple[Artifact, ...]:
    """What leaves of an adapter for which `what` is wanted; of a fully fine-tuned model, the model in PEFT's place."""
    whole = adapter.method == "full"
    return tuple(dict.fromkeys("merged" if whole and one == "adapter" else one for one in what))


def check_destinations(destinations: Sequence[Destination], sends: Mapping[str, Sequence[Artifact]]) -> list[Fault]:
    """What would keep `sends`, {adapter: artifacts}, from being published: credentials, permissions, places, names.

    TransientError if a place does not answer, and nothing is wrong with the others.
    """
    faults: list[Fault] = []
    silent: TransientError | None = None
    for index, place in enumerate(destinations):
        try:
            found = _check(place, sends)
        except TransientError as error:
            silent = error
            continue
        faults += [Fault(fault.message, f"publish.to.{index}") for fault in found]
    if silent and not faults:
        raise silent
    return faults


def _check(place: Destination, sends: Mapping[str, Sequence[Artifact]]) -> list[Fault]:
    if place.folder is not None:
        return folder.check(place.folder)
    if place.s3 is not None:
        return s3.check(*bucket_and_prefix(place.s3), place.endpoint_url)
    return hub.check([repo_id_of(place, name, one) for name, what in sends.items() for one in what])


def publish_to(place: Destination, release: Release) -> Published:
    """Send one release to one destination; no channel is moved."""
    if place.folder is not None:
        return folder.publish(release, place.folder)
    if place.s3 is not None:
        bucket, prefix = bucket_and_prefix(place.s3)
        return s3.publish(release, bucket=bucket, prefix=prefix, endpoint_url=place.endpoint_url)
    return hub.publish(release, repo_id=repo_id_of(place, release.name, release.what), private=place.private)


def seen(place: Destination, name: str, channel: str, what: Sequence[Artifact]) -> Mapping[str, Seen]:
    """The pointers as they stand, to be read before anything is sent: one, or on the Hub one for each artifact."""
    if place.folder is not None:
        return {"": folder.read_pointer(place.folder, name, channel)}
    if place.s3 is not None:
        bucket, prefix = bucket_and_prefix(place.s3)
        return {"": s3.read_pointer(bucket, prefix, name, channel, place.endpoint_url)}
    return {one: hub.read_channel(repo_id_of(place, name, one), channel) for one in what}


def move(place: Destination, pointer: Pointer, before: Mapping[str, Any], revisions: Mapping[str, str | None]) -> None:
    """Move the channel to what was published, if it is still where it was `before`; LostRaceError if it is not.

    `revisions` are the Hub's commits by artifact, and empty for other places.
    """
    if place.folder is not None:
        folder.move_pointer(place.folder, pointer, before[""])
    elif place.s3 is not None:
        bucket, prefix = bucket_and_prefix(place.s3)
        s3.move_pointer(bucket, prefix, pointer, before[""], place.endpoint_url)
    else:
        for what, revision in revisions.items():
            assert revision, "the Hub names a commit for all that it takes"
            hub.move_channel(repo_id_of(place, pointer.name, what), pointer, revision, before[what])


def bucket_and_prefix(uri: str) -> tuple[str, str]:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    return bucket, prefix.strip("/")


def repo_id_of(place: Destination, name: str, what: str) -> str:
    return f"{place.hub}-{name}" + ("" if what == "adapter" else f"-{what}")
