"""From a recipe's destinations to the three doors: which check runs before training, which publish at the end."""

from collections.abc import Sequence

from infra.errors import Fault
from tasks.publishing import folder, hub, s3
from tasks.publishing.release import Published, Release
from tasks.recipe.schema import Destination


def check_destinations(destinations: Sequence[Destination], names: Sequence[str]) -> list[Fault]:
    """What would keep the adapters `names` from being published: credentials, permissions, places, names."""
    faults: list[Fault] = []
    for index, place in enumerate(destinations):
        if place.folder is not None:
            found = folder.check(place.folder)
        elif place.s3 is not None:
            found = s3.check(*_bucket_and_prefix(place.s3), place.endpoint_url)
        else:
            found = [fault for name in names for fault in hub.check(_repo_id(place, name, "adapter"))][:1]
        faults += [Fault(fault.message, f"publish.to.{index}") for fault in found]
    return faults


def publish_to(place: Destination, release: Release) -> Published:
    """Send one release to one destination."""
    if place.folder is not None:
        return folder.publish(release, place.folder)
    if place.s3 is not None:
        bucket, prefix = _bucket_and_prefix(place.s3)
        return s3.publish(release, bucket=bucket, prefix=prefix, endpoint_url=place.endpoint_url)
    return hub.publish(release, repo_id=_repo_id(place, release.name, release.what), private=place.private)


def _bucket_and_prefix(uri: str) -> tuple[str, str]:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    return bucket, prefix.strip("/")


def _repo_id(place: Destination, name: str, what: str) -> str:
    return f"{place.hub}-{name}" + ("-merged" if what == "merged" else "")
