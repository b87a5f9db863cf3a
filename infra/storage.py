"""The store: where every result lives, and the only thing that says whether a piece of work is done.

One root, a local folder or `s3://bucket/prefix` (infra/files.py):

    <kind>/<name>-<digest>/...      the files of an artifact, named by their content
    <kind>/<name>-<digest>/manifest.json   written last: without it the folder does not count
    index/<stage>/<key>.json        which artifact a stage key led to
    claims/<stage>/<key>/<token>.json      who works on a key; the highest token is the holder
    runs/<run-id>/summary.json      what a run answered

A writer that was paused and declared dead holds a claim that was taken over, and cannot complete anything
(infra/claims.py). Nothing is believed by name alone: `lookup` hashes every file against the manifest, and a result
that is gone or altered counts as never made.
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from infra.claims import Claim, Claims
from infra.errors import IntegrityError
from infra.files import Files
from infra.hashing import SHORT, digest_file, digest_json, digest_stream, digest_tree
from infra.settings import cache_folder

MANIFEST = "manifest.json"


class ArtifactRef(BaseModel):
    """A finished artifact: what stages hand to each other instead of live objects."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    name: str
    uri: str  # the folder, under the store's root
    digest: str  # SHA-256 over the paths and digests of its files


class Store(Files):
    """Artifacts under one root. Safe for many processes and machines at once."""

    def __init__(self, root: str):
        super().__init__(root)
        self.claims = Claims(self)

    def manifest(self, ref: ArtifactRef) -> dict[str, Any]:
        manifest = self.read_json(f"{self.relative(ref.uri)}/{MANIFEST}")
        if manifest is None:
            raise IntegrityError(f"{ref.uri} has no manifest: it was never completed, or was deleted.")
        if not is_whole(manifest):
            raise IntegrityError(f"{ref.uri}: the manifest was altered.")
        return manifest

    def verify(self, ref: ArtifactRef) -> None:
        """Hash every file of `ref`; IntegrityError names what is missing or altered."""
        manifest = self.manifest(ref)
        files = {file["path"]: file["sha256"] for file in manifest["files"]}
        if manifest["digest"] != ref.digest or digest_tree(files) != ref.digest:
            raise IntegrityError(f"{ref.uri}: the manifest is not the one of digest {ref.digest[:SHORT]}.")
        folder = f"{self._path}/{self.relative(ref.uri)}"
        for path, sha256 in files.items():
            try:
                with self.fs.open(f"{folder}/{path}", "rb") as stream:
                    found = digest_stream(stream)
            except FileNotFoundError as error:
                raise IntegrityError(f"{ref.uri}: {path} is missing.") from error
            if found != sha256:
                raise IntegrityError(f"{ref.uri}: {path} has digest {found[:SHORT]}, not {sha256[:SHORT]}.")

    def fetch(self, ref: ArtifactRef) -> Path:
        """A local folder with the verified files of `ref`: the store's own if it is local, else a cached copy."""
        relative = self.relative(ref.uri)
        if self.is_local:
            self.verify(ref)
            return Path(self._path) / relative
        cache = cache_folder() / relative
        copy = Store(str(cache_folder()))
        local = ref.model_copy(update={"uri": str(cache)})
        cache.parent.mkdir(parents=True, exist_ok=True)
        with (cache.parent / f".{cache.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one download per machine; whoever waited finds it done
            try:
                copy.verify(local)
            except IntegrityError:
                beside = cache.with_name(f".partial-{cache.name}")
                shutil.rmtree(beside, ignore_errors=True)
                self._download(ref, beside)
                shutil.rmtree(cache, ignore_errors=True)
                beside.replace(cache)
                copy.verify(local)
        return cache

    def _download(self, ref: ArtifactRef, folder: Path) -> None:
        source = f"{self._path}/{self.relative(ref.uri)}"
        for file in [*(entry["path"] for entry in self.manifest(ref)["files"]), MANIFEST]:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            try:
                self.fs.get_file(f"{source}/{file}", str(folder / file))
            except FileNotFoundError as error:
                raise IntegrityError(f"{ref.uri}: {file} is missing.") from error

    def lookup(self, stage: str, key: str) -> ArtifactRef | None:
        """The verified artifact that `key` led to, or None: never made, gone, or altered."""
        entry = self.read_json(f"index/{stage}/{key}.json")
        if entry is None:
            return None
        try:
            uri = f"{self.root}/{entry['path']}"
            ref = ArtifactRef(kind=entry["kind"], name=entry["name"], uri=uri, digest=entry["digest"])
            self.verify(ref)
        except (KeyError, TypeError, ValidationError, IntegrityError):  # the first three: the entry was altered
            return None
        self._touch(f"index/{stage}/{key}.json", entry)
        return ref

    def once(
        self,
        stage: str,
        key: str,
        make: Callable[[Claim], ArtifactRef],
        *,
        run_id: str,
        poll_seconds: float = 1.0,
    ) -> tuple[ArtifactRef, bool]:
        """The artifact of `key`, made at most once at a time over all machines; and whether it was there already.

        `make` gets the claim and ends in `complete`. A second caller waits for the first one, and takes over
        if that one dies.
        """
        while True:
            if ref := self.lookup(stage, key):
                return ref, True
            if claim := self.claims.take(stage, key, run_id):
                break
            time.sleep(poll_seconds)
        with self.claims.renewed(claim):
            if ref := self.lookup(stage, key):  # finished between the look and the claim
                return ref, True
            return make(claim), False

    def holder(self, stage: str, key: str) -> dict[str, Any] | None:
        """Who works on `key` just now: {"run_id", "host", "pid", "until"}; None if nobody does."""
        return self.claims.holder(stage, key)

    def held(self, stage: str, key: str, *, run_id: str) -> AbstractContextManager[bool]:
        """Keep others from working on `key` for as long as this lasts; False if somebody is at it already."""
        return self.claims.held(stage, key, run_id=run_id)

    def complete(self, folder: Path, *, claim: Claim, kind: str, name: str, manifest: Mapping[str, Any]) -> ArtifactRef:
        """Move the files of `folder` into the store as one artifact; manifest last, then the index.

        StaleWriterError if another writer has taken the key over: then nothing becomes visible.
        """
        files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
        if MANIFEST in files:
            raise ValueError(f"{folder} holds a {MANIFEST}, the name of the store's own file")
        digests = {path: digest_file(file) for path, file in files.items()}
        digest = digest_tree(digests)
        relative = f"{kind}/{name}-{digest[:SHORT]}"
        ref = ArtifactRef(kind=kind, name=name, uri=f"{self.root}/{relative}", digest=digest)
        sizes = {path: file.stat().st_size for path, file in files.items()}
        try:
            self.verify(ref)  # the same bytes are there already, from another key
        except IntegrityError:
            for path, file in files.items():
                self._move_in(file, f"{relative}/{path}")
            self.claims.check(claim)
            content = {
                "schema": 1,
                "kind": kind,
                "name": name,
                "digest": digest,
                "files": [{"path": p, "size": sizes[p], "sha256": d} for p, d in digests.items()],
                "stage": {"name": claim.stage, "key": claim.key},
                "run_id": claim.run_id,
                "fencing_token": claim.token,
                **manifest,
            }
            content["manifest_sha256"] = _digest_manifest(content)
            self.write_json(f"{relative}/{MANIFEST}", content)
        self.claims.check(claim)
        entry = {"kind": kind, "name": name, "path": relative, "digest": digest}
        self.write_json(f"index/{claim.stage}/{claim.key}.json", entry)
        return ref

    def _touch(self, path: str, entry: Mapping[str, Any]) -> None:
        """Make the index entry young: whoever collects garbage must not take what a run has just found."""
        with suppress(OSError):  # a store that may only be read is not collected by us either
            if self.is_local:
                os.utime(f"{self._path}/{path}")
            else:
                self.write_json(path, entry)

    def _move_in(self, file: Path, path: str) -> None:
        target = f"{self._path}/{path}"
        if not self.is_local:
            self.fs.put_file(str(file), target)
            return
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
        shutil.move(file, target)


def is_whole(manifest: Any) -> bool:
    """Whether `manifest` is one of an artifact, and still what was written."""
    return isinstance(manifest, dict) and manifest.get("manifest_sha256") == _digest_manifest(manifest)


def _digest_manifest(manifest: Mapping[str, Any]) -> str:
    """Over all of a manifest but this digest, as it reads back from JSON."""
    rest = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    return digest_json(json.loads(json.dumps(rest)))
