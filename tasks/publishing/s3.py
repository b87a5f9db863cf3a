"""Publish to S3, or to anything that speaks S3 (`endpoint_url`), under `<prefix>/<name>/<what>-<digest>/`.

The files go first, `tunefleet.json` goes last and only if it is not there yet. So a prefix with a manifest is whole, a
killed publisher leaves a prefix without one, and of two publishers at once the second finds the work done. A release
that stands is not rewritten, only repaired. Then the channel `<prefix>/<name>/channels/<channel>.json` is swapped, if
it is still the one that was read before anything was sent.

Nothing that anybody may still be writing is deleted. Multipart uploads under a release that stands are of no use to
anybody and are aborted; so are those of the same name that nobody has finished for a day, whose publisher, should it
still live, starts that file again. Files without a manifest stay for the next publish of that release: no reader looks
at them, and that publish sends only the rest.
"""

import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

from infra.errors import Fault, IntegrityError, RequestError
from tasks.publishing import s3_objects
from tasks.publishing.pointer import Pointer, Seen, dump, lost, parse, path_of, same_release
from tasks.publishing.release import (
    MANIFEST,
    Content,
    Published,
    Release,
    contents,
    released_files,
    require_same_override,
)
from tasks.publishing.s3_client import THREADS, connect, explained
from tasks.publishing.s3_objects import Bucket

_PROBE = ".tunefleet-write-probe"
_ABANDONED = timedelta(days=1)
_LOOK_INTO = 3  # releases before this one, for files that it shares with them


def check(bucket: str, prefix: str = "", endpoint_url: str | None = None) -> list[Fault]:
    """What would keep a release from being published there, found before any training.

    Puts a small object under the prefix, reads it, and deletes it again. TransientError if the server does not answer.
    """
    key = _join(prefix, f"{_PROBE}-{secrets.token_hex(4)}")  # its own: others may be checking
    try:
        with explained(bucket):
            there = Bucket(connect(endpoint_url), bucket)
            # Before the put, which makes a missing bucket on some servers. And to whoever may not list, an object that
            # is not there looks forbidden: publishing would stop at it.
            there.read(key)
            there.listed(key)
            there.unfinished(key)
            there.put_if(key, b"{}", None)
            try:
                there.read(key)
                guarded = not there.put_if(key, b"{}", None) and not there.put_if(key, b"{}", '"of no object"')
            finally:
                there.delete(key)
    except RequestError as error:
        return list(error.faults)
    if not guarded:
        return [
            Fault(
                f"the server of s3://{bucket} ignores If-None-Match or If-Match, so two publishers could overwrite "
                "each other unseen: update the server, or publish elsewhere"
            )
        ]
    return []


def publish(release: Release, *, bucket: str, prefix: str = "", endpoint_url: str | None = None) -> Published:
    """Put the release into the bucket, or verify and repair the one that already stands there.

    Raises TransientError for what may go through when tried again, RequestError for missing rights, a missing bucket
    or a standing card that tells another reason for an override, IntegrityError when what stands there is another
    release or does not read back as it was sent.
    """
    siblings = _join(prefix, release.name)
    home = _join(siblings, release.slug)
    uri = f"s3://{bucket}/{home}/"
    *blobs, manifest = contents(release)
    with explained(bucket):
        there = Bucket(connect(endpoint_url), bucket)
        standing = there.read(_join(home, MANIFEST))
        if standing is None:
            _store(there, home, blobs, _twins(there, siblings, blobs))
            if not there.put_if(_join(home, MANIFEST), manifest.read(), None):
                standing = there.read(_join(home, MANIFEST))
        if standing is not None:
            _store(there, home, _vouched_for(release, standing[0], blobs, uri), {})
        elif (written := there.read(_join(home, MANIFEST))) is None or written[0] != manifest.read():
            raise IntegrityError(f"{uri}{MANIFEST} does not read back as it was written")
        _clear_away(there, siblings, home)
    return Published(to="s3", uri=uri, what=release.what, digest=release.digest)


def read_pointer(bucket: str, prefix: str, name: str, channel: str, endpoint_url: str | None = None) -> Seen:
    """The channel as it stands; its token is the ETag."""
    key = _join(prefix, path_of(name, channel))
    with explained(bucket):
        found = Bucket(connect(endpoint_url), bucket).read(key)
    if found is None:
        return Seen(None, None)
    return Seen(parse(found[0], f"s3://{bucket}/{key}"), found[1])


def move_pointer(bucket: str, prefix: str, pointer: Pointer, seen: Seen, endpoint_url: str | None = None) -> None:
    """Move the channel to `pointer`, if it is still what was `seen`; LostRaceError if somebody else has moved it.

    RequestError if a release that it would lead to is not there.
    """
    if same_release(seen.pointer, pointer):
        return
    key = _join(prefix, path_of(pointer.name, pointer.channel))
    uri = f"s3://{bucket}/{key}"
    with explained(bucket):
        there = Bucket(connect(endpoint_url), bucket)
        for slug in pointer.releases.values():
            if there.read(_join(prefix, pointer.name, slug, MANIFEST)) is None:
                raise RequestError(f"{uri} cannot lead to {slug}, which is not there as a whole: publish it first")
        if there.put_if(key, dump(pointer), seen.token):
            return
        now = there.read(key)
    # An answer that was lost on the way is asked for again: it may be our own move that we find.
    if now is None or not same_release(parse(now[0], uri), pointer):
        raise lost(pointer, uri)


def _vouched_for(release: Release, manifest: bytes, blobs: Sequence[Content], uri: str) -> list[Content]:
    """The blobs that the standing manifest names: all of them, less a card and the like that were reworded since."""
    vouched = released_files(manifest)
    if vouched is None:
        raise IntegrityError(f"{uri}{MANIFEST} is damaged: delete that object and publish again")
    if any(vouched.get(blob.path) != blob.sha256 for blob in blobs if blob.path not in release.wording):
        raise IntegrityError(f"{uri} already holds other files under the same digest: publish under another prefix")
    require_same_override(release, manifest, uri)
    return [blob for blob in blobs if vouched.get(blob.path) == blob.sha256]


def _store(there: Bucket, home: str, blobs: Sequence[Content], twins: dict[str, str]) -> None:
    """Small files beside each other; large ones one after another, of which the parts go beside each other."""

    def store(blob: Content) -> None:
        there.store(blob, _join(home, blob.path), twins.get(blob.sha256))

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(store, [blob for blob in blobs if blob.size <= s3_objects.PART]):
            pass  # raises what was raised
    for blob in blobs:
        if blob.size > s3_objects.PART:
            store(blob)


def _twins(there: Bucket, siblings: str, blobs: Sequence[Content]) -> dict[str, str]:
    """Keys by sha256 of what the last finished releases of the same name already hold: the server can copy those.

    Their manifests vouch for the hashes; only manifests beside an object of a wanted size are read. Small files are
    sent as quickly as they are copied.
    """
    wanted = {blob.size for blob in blobs if blob.size > s3_objects.READ_BACK}
    listed = there.listed(siblings + "/") if wanted else {}
    slugs = {key.removeprefix(siblings + "/").partition("/")[0] for key, (size, _) in listed.items() if size in wanted}
    manifests = [key for slug in slugs if (key := _join(siblings, slug, MANIFEST)) in listed]
    twins: dict[str, str] = {}
    for key in sorted(manifests, key=lambda key: listed[key][1])[-_LOOK_INTO:]:
        found = there.read(key)
        for path, sha256 in ((found and released_files(found[0])) or {}).items():
            twins[sha256] = key.removesuffix(MANIFEST) + path
    return twins


def _clear_away(there: Bucket, siblings: str, home: str) -> None:
    """Abort what killed publishers left in parts; see above for what is left alone."""
    limit = datetime.now(UTC) - _ABANDONED
    there.abort(
        one for one in there.unfinished(siblings + "/") if one.key.startswith(home + "/") or one.started < limit
    )


def _join(*parts: str) -> str:
    return "/".join(part.strip("/") for part in parts if part.strip("/"))
