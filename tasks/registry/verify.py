"""Is it still what was released? Every file is read again and hashed, against the manifest that stands beside it.

What is not what it should be is a problem; what merely stands there as well is a note.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.errors import IntegrityError, RequestError, TransientError
from infra.hashing import SHORT, digest_tree
from infra.storage import MANIFEST as STORE_MANIFEST
from infra.storage import Store, is_whole
from tasks.publishing.markdown import printable
from tasks.publishing.pointer import parse
from tasks.publishing.release import CARD, MANIFEST, released_files
from tasks.registry.inventory import Inventory
from tasks.registry.lineage import GONE, verdicts_on
from tasks.registry.places import ALLOWED, Place, at, of_artifact, of_published, published_digest
from tasks.registry.records import VERSIONED, ReleaseRecord, find, publications

SLUG = re.compile(rf"[a-z]+-(?P<short>[0-9a-f]{{{SHORT}}})")
WORDING = re.compile(rf"{re.escape(CARD)}|\.eval_results/.*")  # says what the manifest says; not of the artifact


@dataclass(frozen=True)
class Finding:
    """What was found in one place."""

    uri: str
    files: int = 0  # that were hashed and are what they should be
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify(uri: str, store: Store | None = None, endpoint_url: str | None = None) -> list[Finding]:
    """One finding for each place that `uri` leads to.

    NAME@VERSION is all that the release came from in `store`, and all places where it was published; a folder of a
    store, a published folder, s3:// or hf:// is itself; a channel's .json is what it points to. RequestError if nothing
    of the kind is there.
    """
    if is_label(uri):
        if store is None:
            raise RequestError(f"{uri!r} is a release's name: say which store it is in.")
        return verify_release(store, find(store, uri))
    return [check_place(place) for place in places_at(uri, endpoint_url)]


def is_label(uri: str) -> bool:
    """NAME or NAME@VERSION; a folder has a slash, be it ./ before its name."""
    return VERSIONED.match(uri) is not None


def verify_release(store: Store, record: ReleaseRecord) -> list[Finding]:
    """Everything that the store holds of a release and its origins, then every place it was sent to."""
    inventory = Inventory(store)
    starts = [record.adapter.digest, record.base.digest, record.data.digest, record.verdict.digest]
    findings = []
    for digest in inventory.reached([*starts, *verdicts_on(inventory, record.adapter.digest)]):
        places = [*inventory.places_of(digest), *inventory.altered(digest)]
        findings += [check_artifact(of_artifact(store, place)) for place in places]
        if not places:
            findings.append(Finding(f"{store.root}: artifact {digest[:SHORT]}", problems=[GONE]))
    for one in publications(store, record):
        place = of_published(one.published, one.place.endpoint_url)
        try:
            finding = check_published(place, place.read(MANIFEST), one.published.digest)
        except (RequestError, TransientError) as error:
            finding = Finding(place.uri, problems=[f"cannot be read: {error}"])
        findings.append(finding)
    return findings


def places_at(uri: str, endpoint_url: str | None) -> list[Place]:
    """The folder that `uri` names, or those that a channel's .json leads to: they stand beside its folder."""
    if not uri.endswith(".json"):
        return [at(uri, endpoint_url)]
    folder, _, name = uri.rpartition("/")
    data = at(folder or ".", endpoint_url).read(name)
    if data is None:
        raise RequestError(f"there is no {uri}. Allowed: NAME@VERSION, {ALLOWED}.")
    home = folder.rpartition("/")[0] or "."
    return [at(f"{home}/{slug}", endpoint_url) for slug in parse(data, uri).releases.values()]


def read_manifests(uri: str, endpoint_url: str | None = None) -> list[dict[str, Any]]:
    """tunefleet.json of each published release, or manifest.json of the artifact, that `uri` leads to."""
    manifests = []
    for place in places_at(uri, endpoint_url):
        for name in (MANIFEST, STORE_MANIFEST):
            if (data := place.read(name)) is not None:
                break
        else:
            raise RequestError(_nothing(place))
        try:
            manifests.append(dict(json.loads(data)))
        except ValueError as error:
            raise IntegrityError(f"{place.uri}: {name} is damaged: {error}") from error
    return manifests


def check_place(place: Place) -> Finding:
    """A published release or an artifact of a store, whichever it is."""
    published = place.read(MANIFEST)
    if published is not None:
        return check_published(place, published)
    if place.read(STORE_MANIFEST) is not None:
        return check_artifact(place)
    raise RequestError(_nothing(place))


def _nothing(place: Place) -> str:
    return (
        f"{place.uri} holds neither {MANIFEST} nor {STORE_MANIFEST}: no release or artifact stands there. "
        f"Allowed: NAME@VERSION, {ALLOWED}."
    )


def check_published(place: Place, manifest: bytes | None, digest: str | None = None) -> Finding:
    """Against tunefleet.json, and that against `digest`, or the one in the folder's name."""
    if manifest is None:
        return Finding(place.uri, problems=[f"{MANIFEST} is missing: no whole release stands there"])
    files = released_files(manifest)
    said = published_digest(manifest)
    if files is None or said is None:
        return Finding(place.uri, problems=[f"{MANIFEST} is damaged: what should stand there is not known"])
    slug = SLUG.fullmatch(Path(place.uri.rstrip("/")).name)
    problems = []
    if not said.startswith(digest or (slug["short"] if slug else "")):
        named = digest or (slug["short"] if slug else "")
        problems.append(f"{MANIFEST} is of digest {said[:SHORT]}, not {named[:SHORT]}")
    if digest_tree({path: sha256 for path, sha256 in files.items() if not WORDING.fullmatch(path)}) != said:
        problems.append(f"{MANIFEST} was altered: the files it lists are not those of digest {said[:SHORT]}")
    return _compared(place, files, MANIFEST, problems)


def check_artifact(place: Place) -> Finding:
    """Against the store's manifest.json."""
    try:
        manifest = json.loads(place.read(STORE_MANIFEST) or b"")
    except ValueError:
        return Finding(place.uri, problems=[f"{STORE_MANIFEST} is missing or damaged"])
    if not is_whole(manifest):
        return Finding(place.uri, problems=[f"{STORE_MANIFEST} was altered"])
    files = {file["path"]: file["sha256"] for file in manifest["files"]}
    problems = []
    if digest_tree(files) != manifest["digest"] or not place.uri.rstrip("/").endswith(manifest["digest"][:SHORT]):
        problems.append(f"{STORE_MANIFEST} is not the one of this folder")
    return _compared(place, files, STORE_MANIFEST, problems)


def _compared(place: Place, files: Mapping[str, str], own: str, problems: list[str]) -> Finding:
    right = 0
    for path, wanted in sorted(files.items()):
        if "\0" in path or {"", ".", ".."} & {*path.split("/")}:
            problems.append(f"{own} lists {path!r}, which is no path inside of it; it was not read")
        elif (found := place.sha256(path)) is None:
            problems.append(f"{path} is missing")
        elif found != wanted:
            problems.append(f"{path} has digest {found[:SHORT]}, not {wanted[:SHORT]}")
        else:
            right += 1
    others = sorted(place.paths() - files.keys() - {own})
    notes = [f"{path} stands there too, and is not part of it" for path in others]
    return Finding(place.uri, right, [printable(one) for one in problems], [printable(one) for one in notes])


def require_whole(findings: list[Finding]) -> None:
    """IntegrityError with every problem, if there is any."""
    problems = [f"{one.uri}: {problem}" for one in findings for problem in one.problems]
    if problems:
        raise IntegrityError("\n".join(problems))
