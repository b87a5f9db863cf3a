"""Publish to a model repository of the Hugging Face Hub: one commit that has everything, a tag on it, then a channel.

The head is read first and named as the commit's parent, so that what somebody else commits in between is never
overwritten unseen. Files that are there already are not sent, files of our last release that this one no longer
has are deleted in the same commit, and anything else in the repository is left alone. Publishing the same release
again makes no commit.

`create_commit` and not `upload_folder`: that one splits into several commits, and only its first has a parent.
The token is found by huggingface_hub itself (HF_TOKEN, or `hf auth login`); it never passes through here.
"""

import hashlib
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of whichever HTTP library this huggingface_hub is built on
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    OIDCError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id

from infra.errors import Fault, IntegrityError, RequestError, TransientError
from tasks.publishing.pointer import Pointer, Seen, lost
from tasks.publishing.release import MANIFEST, Content, Published, Release, contents, released_files

log = logging.getLogger(__name__)

_PUBLIC_HUB = "https://huggingface.co"
_LOG_IN = "set HF_TOKEN to a token with write access, or run `hf auth login` (https://huggingface.co/settings/tokens)"
_LATER = {408, 409, 429}


def check(repo_ids: Sequence[str], endpoint: str | None = None) -> list[Fault]:
    """What would keep releases from being published to these repositories, found before any training.

    TransientError if the Hub does not answer.
    """
    faults = [fault for repo_id in repo_ids for fault in _check_name(repo_id)] + _check_endpoint(endpoint)
    try:
        with _explained(", ".join(repo_ids)):
            if get_token() is None:
                return [*faults, Fault(f"no Hugging Face token was found: {_LOG_IN}")]
            if faults:
                return faults
            me = HfApi(endpoint=endpoint).whoami()
    except RequestError as error:
        return [*faults, *error.faults]
    token = me.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        return [Fault(f"the Hugging Face token of {me['name']} may only read: {_LOG_IN}")]
    allowed = [me["name"], *(org["name"] for org in me.get("orgs", []) if org.get("roleInOrg") != "read")]
    if token.get("role") == "fineGrained":
        allowed = [name for name in allowed if name in _writable(token)]
    strange = sorted({repo_id.split("/")[0] for repo_id in repo_ids if not _is_allowed(repo_id, allowed, token)})
    return [
        Fault(
            f"{me['name']} cannot publish to {namespace} with this Hugging Face token, only to "
            f"{', '.join(allowed) or 'nothing'}: correct publish.to, or {_LOG_IN}"
        )
        for namespace in strange
    ]


def _is_allowed(repo_id: str, allowed: Sequence[str], token: Mapping[str, Any]) -> bool:
    return repo_id.split("/")[0] in allowed or repo_id in _writable(token)


def _writable(token: Mapping[str, Any]) -> set[str]:
    """Names of the users, organizations and repositories that a fine-grained token may write to."""
    scopes = token.get("fineGrained", {}).get("scoped", [])
    return {scope["entity"]["name"] for scope in scopes if "repo.write" in scope.get("permissions", [])}


def publish(release: Release, *, repo_id: str, private: bool = True, endpoint: str | None = None) -> Published:
    """Commit the release to the head of the repository, which is made if there is none, and tag the commit.

    `private` is for a new repository; one that exists keeps its visibility, and a warning says if it is public.
    Raises TransientError for what may go through when tried again (another commit came in between), RequestError for
    a token without the right, and IntegrityError when the repository does not hold what was committed.
    """
    if faults := _check_name(repo_id) + _check_endpoint(endpoint):
        raise RequestError(faults)
    files = contents(release)
    api = HfApi(endpoint=endpoint)
    with _explained(repo_id):
        api.create_repo(repo_id, private=private, exist_ok=True)
        standing = api.model_info(repo_id)
        if private and standing.private is False:
            log.warning("%s is public, and stays so: `private` is for repositories that are made", repo_id)
        head = standing.sha
        there = _tree(api, repo_id, head)
        changed = [file for file in files if not _same(file, there.get(file.path))]
        stale = _ours(api, repo_id, head, there) - {file.path for file in files}
        if changed or stale:
            head = _commit(api, repo_id, head, changed=changed, stale=stale, message=f"Publish {release.tag}")
            _require_whole(api, repo_id, head, files)
        api.create_tag(repo_id, tag=release.tag, revision=head, exist_ok=True)
        # The tag may be older than this commit (a reworded card, a release rolled back to), never other weights.
        _require_whole(api, repo_id, release.tag, [file for file in files if file.path not in release.wording])
    return Published(to="hub", uri=f"{api.endpoint}/{repo_id}", what=release.what, digest=release.digest, revision=head)


def read_channel(repo_id: str, channel: str, endpoint: str | None = None) -> Seen:
    """The commit that the tag `channel` leads to; none if there is no such tag, or no repository yet.

    RequestError if it is the name of a branch: readers who ask for that revision might be given either.
    """
    with _explained(repo_id):
        return Seen(None, _commit_of(HfApi(endpoint=endpoint), repo_id, channel))


def move_channel(repo_id: str, pointer: Pointer, revision: str, seen: Seen, *, endpoint: str | None = None) -> None:
    """Move the tag `pointer.channel` to the commit `revision`, if it still is where it was `seen`.

    LostRaceError if it is not. The Hub cannot swap a tag: the old one is deleted, then the new one made. So, unlike in
    a folder or on S3,

    - a reader who asks in between is told that there is no such revision, and a publisher killed in between leaves it
      so until it is moved again. Nobody is ever led to half a release: both commits are whole.
    - of two publishers who read the tag at the same moment, the slower one may delete what the faster one has just
      made. Both then see the tag that stands, and the faster one is told that it lost only if it looks late enough.

    If the new tag cannot be made, the old one is put back.
    """
    api = HfApi(endpoint=endpoint)
    where = f"the tag {pointer.channel} of {repo_id}"
    with _explained(repo_id):
        standing = _commit_of(api, repo_id, pointer.channel)
        if standing == revision:
            return
        if standing != seen.token:
            raise lost(pointer, where)
        if standing is not None:
            _delete_tag(api, repo_id, pointer, where)
        try:
            _create_tag(api, repo_id, pointer, revision, where)
        except (HfHubHTTPError, HTTPError):
            if standing is not None and _commit_of(api, repo_id, pointer.channel) is None:
                _create_tag(api, repo_id, pointer, standing, where)
            raise
        if _commit_of(api, repo_id, pointer.channel) != revision:
            raise lost(pointer, where)


def _commit_of(api: HfApi, repo_id: str, channel: str) -> str | None:
    try:
        refs = api.list_repo_refs(repo_id)
    except RepositoryNotFoundError:
        return None
    if channel in {branch.name for branch in refs.branches}:
        raise RequestError(
            f"{channel!r} is a branch of {repo_id}, and on the Hub a channel is a tag: publish under another channel, "
            "e.g. stable (publish.channel, or --channel)"
        )
    return next((tag.target_commit for tag in refs.tags if tag.name == channel), None)


def _delete_tag(api: HfApi, repo_id: str, pointer: Pointer, where: str) -> None:
    try:
        api.delete_tag(repo_id, tag=pointer.channel)
    except RevisionNotFoundError as error:
        raise lost(pointer, where) from error


def _create_tag(api: HfApi, repo_id: str, pointer: Pointer, revision: str, where: str) -> None:
    try:
        api.create_tag(repo_id, tag=pointer.channel, revision=revision)
    except HfHubHTTPError as error:
        if error.response.status_code == 409:
            raise lost(pointer, where) from error
        raise


def _check_name(repo_id: str) -> list[Fault]:
    if repo_id.count("/") != 1:
        return [
            Fault(
                f"the repository would be {repo_id!r}; it has to be namespace/name. Begin publish.to's `hub` with "
                "your user name or organization and one slash"
            )
        ]
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        return [Fault(f"the repository would be {repo_id!r}, which is not one the Hub takes: {error}")]
    return []


def _check_endpoint(endpoint: str | None) -> list[Fault]:
    if endpoint is None or endpoint.startswith(("http://", "https://")):
        return []
    return [Fault(f"the Hub's endpoint {endpoint!r} is not an address: write http(s)://host[:port]")]


def _commit(
    api: HfApi, repo_id: str, parent: str | None, *, changed: Sequence[Content], stale: set[str], message: str
) -> str:
    with ExitStack() as opened:
        operations: list[CommitOperationAdd | CommitOperationDelete] = []
        for file in changed:
            source: object = file.source
            if isinstance(file.source, Path) and api.endpoint != _PUBLIC_HUB:
                # Given paths, huggingface_hub 2 uploads through Xet without asking whether the server has it. Given
                # open files it takes plain LFS, which every Hub and mirror speaks.
                source = opened.enter_context(file.source.open("rb"))
            operations.append(CommitOperationAdd(file.path, source))  # type: ignore[arg-type]
        operations += [CommitOperationDelete(path) for path in sorted(stale)]
        return api.create_commit(repo_id, operations, commit_message=message, parent_commit=parent).oid


def _tree(api: HfApi, repo_id: str, revision: str | None) -> dict[str, RepoFile]:
    entries = api.list_repo_tree(repo_id, recursive=True, revision=revision)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def _same(file: Content, remote: RepoFile | None) -> bool:
    if remote is None or remote.size != file.size:
        return False
    if remote.lfs is not None:
        return remote.lfs.sha256 == file.sha256
    # Small text files are plain git blobs, known by git's own hash.
    return hashlib.sha1(b"blob %d\0" % file.size + file.read(), usedforsecurity=False).hexdigest() == remote.blob_id


def _ours(api: HfApi, repo_id: str, revision: str | None, there: Mapping[str, RepoFile]) -> set[str]:
    """Files in the repository that the release which stands there brought along."""
    if MANIFEST not in there:
        return set()
    with tempfile.TemporaryDirectory() as folder:
        manifest = api.hf_hub_download(repo_id, MANIFEST, revision=revision, local_dir=folder)
        return set(released_files(Path(manifest).read_bytes()) or ()) & there.keys()


def _require_whole(api: HfApi, repo_id: str, revision: str, files: Sequence[Content]) -> None:
    there = _tree(api, repo_id, revision)
    if missing := [file.path for file in files if not _same(file, there.get(file.path))]:
        raise IntegrityError(
            f"{repo_id} at {revision} does not hold what was published: {', '.join(missing)}. "
            "Is a .gitignore in the repository in the way, or a tag of another origin?"
        )


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """Turn huggingface_hub's errors into ours: worth another try, or what to change."""
    try:
        yield
    except HfHubHTTPError as error:
        raise _translated(error, repo_id) from error
    except (LocalTokenNotFoundError, OIDCError) as error:
        raise RequestError(f"no Hugging Face token: {_LOG_IN}. {error}") from error
    except OfflineModeIsEnabled as error:
        raise RequestError(f"cannot publish to {repo_id} while HF_HUB_OFFLINE is set") from error
    except LocalEntryNotFoundError as error:  # a file could not be asked for; the cause says why
        if isinstance(error.__cause__, HfHubHTTPError):
            raise _translated(error.__cause__, repo_id) from error
        raise TransientError(f"the Hub cannot be reached for {repo_id}: {error.__cause__ or error}") from error
    except (HTTPError, ConnectionError) as error:  # the second is Xet's
        raise TransientError(f"the Hub cannot be reached for {repo_id}: {error}") from error
    except RuntimeError as error:  # from a thread that uploads; the cause says what happened
        if isinstance(error.__cause__, HfHubHTTPError):
            raise _translated(error.__cause__, repo_id) from error
        if isinstance(error.__cause__, HTTPError):
            raise TransientError(f"the upload to {repo_id} broke off: {error.__cause__}") from error
        raise
    except ValueError as error:  # the Hub's verdict on the card's front matter
        raise RequestError(f"{repo_id} did not accept the release: {error}") from error


def _translated(error: HfHubHTTPError, repo_id: str) -> RequestError | TransientError:
    status = error.response.status_code
    if status == 412:
        return TransientError(f"somebody else committed to {repo_id} in the meantime: publish again. {error}")
    if status in _LATER or status >= 500:
        return TransientError(f"the Hub is busy or failing for {repo_id}: {error}")
    if status in (401, 403, 404):
        return RequestError(f"the Hub does not let this token publish to {repo_id}: {_LOG_IN}. {error}")
    return RequestError(f"the Hub did not accept the release for {repo_id}: {error}")
