"""What a release is, whichever door it leaves by: the files of one gated artifact, its card and its lineage.

`Release` says what to publish, `contents` lists it file by file with digests, `require_pass` guards the door, and
`Published` says where it went. The lineage is published as `tunefleet.json` and lists every other file with its
sha256: a reader who has that file can tell a whole release from a half one.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from infra.errors import GateNotPassed, IntegrityError, RequestError
from infra.hashing import SHORT, digest_file, digest_tree
from infra.storage import MANIFEST as STORE_MANIFEST
from tasks.recipe.schema import Artifact

CARD = "README.md"
MANIFEST = "tunefleet.json"


@dataclass(frozen=True)
class Release:
    """One finished artifact that is ready to leave the store."""

    name: str  # of the adapter
    number: int  # of the release among those of this name, from 1; see tasks/registry/records.py
    what: Artifact
    digest: str  # of the artifact: SHA-256 over the paths and digests of its files, as the store has it
    folder: Path  # the artifact's; subfolders are kept
    card: str  # markdown with YAML front matter; takes the place of any README.md in the folder
    manifest: Mapping[str, Any]  # lineage, plain JSON
    extra: Mapping[str, str] = field(default_factory=dict)  # further texts by path, which say what the card says

    @property
    def wording(self) -> frozenset[str]:
        """What may be worded anew for the same artifact; all other files are fixed by the digest."""
        return frozenset({CARD, MANIFEST, *self.extra})

    def __post_init__(self) -> None:
        if not self.name or self.name.startswith(".") or set(self.name) & set("/\\"):
            raise RequestError(f"cannot publish under the name {self.name!r}: a name has no slash and no leading dot")
        if len(self.digest) != 64 or set(self.digest) - set("0123456789abcdef"):
            raise RequestError(f"cannot publish {self.name}: {self.digest!r} is not a sha256 of 64 hex digits")
        if wrong := [
            path for path in self.extra if path.startswith("/") or {"..", CARD, MANIFEST} & {*path.split("/")}
        ]:
            raise RequestError(f"cannot publish {self.name}: {wrong} are no paths for further files")

    @property
    def slug(self) -> str:
        """`adapter-0123456789ab`: what a folder or prefix that holds exactly this content is called."""
        return slug_of(self.what, self.digest)

    @property
    def tag(self) -> str:
        """`v3-0123456789ab`: the Hub's tag. Two stores may count apart, so the number alone would not be unique."""
        return f"v{self.number}-{self.digest[:SHORT]}"


def slug_of(what: Artifact, digest: str) -> str:
    return f"{what}-{digest[:SHORT]}"


class Published(BaseModel):
    """Where a release can be found."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    to: Literal["folder", "s3", "hub"]
    uri: str
    what: Artifact
    digest: str  # of the artifact
    revision: str | None = None  # the Hub's commit; elsewhere the digest in the uri says it


@dataclass(frozen=True)
class Content:
    """One file as readers will find it."""

    path: str  # relative, with forward slashes
    source: Path | bytes
    sha256: str  # hex
    size: int  # bytes

    def read(self) -> bytes:
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()


def contents(release: Release) -> list[Content]:
    """The files of the artifact in order of path, further texts, the card, and then, always last, the manifest.

    Raises RequestError when there are none, IntegrityError when they are not the files that the digest names.
    """
    found = [_file(path, release.folder) for path in sorted(release.folder.rglob("*")) if path.is_file()]
    found = [file for file in found if file.path != STORE_MANIFEST]  # says which run wrote it, not what it is
    listed = [file for file in found if file.path not in release.wording]
    if not listed:
        raise RequestError(f"nothing to publish for {release.name}: {release.folder} holds no files")
    if digest_tree({file.path: file.sha256 for file in found}) != release.digest:
        raise IntegrityError(f"{release.folder} no longer holds the files of digest {release.digest[:SHORT]}")
    listed += [_text(path, release.extra[path]) for path in sorted(release.extra)]
    listed.append(_text(CARD, release.card))
    files = {content.path: {"sha256": content.sha256, "size": content.size} for content in listed}
    manifest = {**release.manifest, "files": files}
    text = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    listed.append(_text(MANIFEST, text + "\n"))
    return listed


def released_files(manifest: bytes) -> dict[str, str] | None:
    """Path to sha256 of what a published manifest vouches for; None where it is no manifest of ours.

    Whoever may write to the place may have written it: one that names a file outside of its folder is none of ours.
    """
    try:
        files = {str(path): str(entry["sha256"]) for path, entry in json.loads(manifest)["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return files if all(_is_within(path) for path in files) else None


def _is_within(path: str) -> bool:
    return "\0" not in path and not {"", ".", ".."} & {*path.split("/")}


def require_same_override(release: Release, standing: bytes, where: str) -> None:
    """RequestError if the manifest that stands for these files tells another reason for an override, or none.

    Its card is not rewritten, so readers there would never see the reason that this release was let through for.
    """
    there, here = json.loads(standing), release.manifest
    if _reason(there) != _reason(here):
        raise RequestError(
            f"{where} holds these files as {release.name} {there.get('version', '(of no known number)')}, "
            f"{_allowed_by(there)}; this is {release.name} v{release.number}, {_allowed_by(here)}, and what stands "
            "keeps its card, which would not say so. Publish this one to another folder or prefix, or lead readers to "
            f"the one that stands (tunefleet list {release.name} shows both)"
        )


def _reason(manifest: Mapping[str, Any]) -> str | None:
    override = manifest.get("override")
    return str(override.get("reason")) if isinstance(override, Mapping) else None


def _allowed_by(manifest: Mapping[str, Any]) -> str:
    reason = _reason(manifest)
    return "released without an override" if reason is None else f"released by override ({reason!r})"


def require_pass(verdict: Mapping[str, Any] | None, digest: str, override: str | None = None) -> None:
    """Raise `GateNotPassed` unless the stored verdict is PASS for exactly this adapter digest.

    `override` is a person's reason to release it all the same; it stands in for the PASS, never for the verdict.
    """
    if verdict is None:
        raise GateNotPassed(f"adapter {digest[:SHORT]} has no verdict: evaluate it before it is published")
    judged, says = verdict.get("adapter_digest"), verdict.get("verdict")
    if judged != digest:
        raise GateNotPassed(
            f"adapter {digest[:SHORT]} has no verdict of its own: the one given is for {str(judged)[:SHORT]}. "
            "Evaluate exactly the adapter that is to be published"
        )
    if says != "PASS" and not override:
        raise GateNotPassed(f"adapter {digest[:SHORT]} may not be published: its verdict is {says}, not PASS")


def _file(path: Path, folder: Path) -> Content:
    return Content(path.relative_to(folder).as_posix(), path, digest_file(path), path.stat().st_size)


def _text(path: str, text: str) -> Content:
    data = text.encode()
    return Content(path, data, hashlib.sha256(data).hexdigest(), len(data))
