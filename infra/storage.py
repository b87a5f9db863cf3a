"""The store: where every result lives, and the only thing that says whether a piece of work is done.

One root, a local folder or `s3://bucket/prefix` (any fsspec filesystem with exclusive creation):

    <kind>/<name>-<digest>/...      the files of an artifact, named by their content
    <kind>/<name>-<digest>/manifest.json   written last: without it the folder does not count
    index/<stage>/<key>.json        which artifact a stage key led to
    claims/<stage>/<key>/<token>.json      who works on a key; the highest token is the holder
    runs/<run-id>/summary.json      what a run answered

A claim is a file created exclusively; taking over an expired one means creating the next number, so the number
is a fencing token: a writer that was paused and declared dead finds a higher one and cannot complete anything.
Nothing is believed by name alone: `lookup` hashes every file against the manifest, and a result that is gone or
altered counts as never made.

It is one long file because artifacts and claims rest on the same two writes: replace as a whole, create exclusively.
"""

import fcntl
import json
import logging
import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from pydantic import BaseModel, ConfigDict, ValidationError

from infra.errors import IntegrityError, RequestError, StaleWriterError
from infra.hashing import SHORT, digest_file, digest_json, digest_stream, digest_tree
from infra.settings import cache_folder

MANIFEST = "manifest.json"
CLAIM_SECONDS = 60.0  # a claim that was not renewed for so long may be taken over

log = logging.getLogger(__name__)


class ArtifactRef(BaseModel):
    """A finished artifact: what stages hand to each other instead of live objects."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    name: str
    uri: str  # the folder, under the store's root
    digest: str  # SHA-256 over the paths and digests of its files


@dataclass(frozen=True)
class Claim:
    """The right to complete one stage key, as long as no higher token exists."""

    stage: str
    key: str
    token: int
    run_id: str


class Store:
    """Artifacts under one root. Safe for many processes and machines at once."""

    def __init__(self, root: str):
        if "://" not in root:
            root = str(Path(root).expanduser().absolute())
        options: dict[str, Any] = {} if "://" not in root else {"use_listings_cache": False}
        try:
            self.fs, self._path = fsspec.core.url_to_fs(root, **options)
        except (ValueError, ImportError) as error:
            raise RequestError(f"store {root!r}: {error}. Allowed: a folder, or s3://bucket/prefix.") from error
        self.is_local = isinstance(self.fs, LocalFileSystem)
        if not self._path.strip("/") or (self.is_local and Path(self._path).is_file()):
            raise RequestError(f"store {root!r} is no folder or bucket. Allowed: a folder, or s3://bucket/prefix.")
        self.root = self._path if self.is_local else root.rstrip("/")

    def check_writable(self) -> None:
        """RequestError if nothing can be written under the root: no permission, no credentials, no such bucket."""
        try:
            self.write_json(".write-probe", {})
            self.fs.rm_file(f"{self._path}/.write-probe")
        except Exception as error:
            raise RequestError(
                f"store {self.root!r} cannot be written: {type(error).__name__}: {error}. Give a folder that is yours, "
                "or s3://bucket/prefix with credentials in the environment (AWS_ENDPOINT_URL for other S3 servers)."
            ) from error

    # --- small JSON files

    def read_json(self, path: str) -> Any | None:
        """The JSON at `path` (relative to the root), or None if there is none or it is cut short."""
        try:
            return json.loads(self.fs.cat_file(f"{self._path}/{path}"))
        except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
            return None

    def write_json(self, path: str, value: Any) -> str:
        """Replace the file at `path` as a whole; returns its uri."""
        self._write(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode())
        return f"{self.root}/{path}"

    def create_json(self, path: str, value: Any) -> bool:
        """Write the file at `path` only if there is none; False if there is. Of several writers one succeeds."""
        return self._create(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode())

    def list_names(self, path: str) -> list[str]:
        """Names of what lies in the folder `path`, sorted; none if there is no such folder."""
        try:
            entries = self.fs.ls(f"{self._path}/{path}", detail=False)
        except FileNotFoundError:
            return []
        names = (Path(entry).name for entry in entries)
        return sorted(name for name in names if not name.startswith("."))

    def _write(self, path: str, data: bytes) -> None:
        target = f"{self._path}/{path}"
        if not self.is_local:
            self.fs.pipe_file(target, data)  # a single PUT is atomic
            return
        beside = _written_beside(Path(target), data)
        beside.replace(target)

    def _create(self, path: str, data: bytes) -> bool:
        """Write `path` only if it does not exist yet; False if it does. Atomic on local disks and on S3."""
        target = f"{self._path}/{path}"
        beside = _written_beside(Path(target), data) if self.is_local else None
        try:
            if beside:
                os.link(beside, target)
            else:
                self.fs.pipe_file(target, data, mode="create")
        except OSError as error:
            if isinstance(error, FileExistsError) or _lost_the_race(error):
                return False
            raise
        finally:
            if beside:
                beside.unlink()
        return True

    # --- artifacts

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
            if claim := self._claim(stage, key, run_id):
                break
            time.sleep(poll_seconds)
        with self._renewed(claim):
            if ref := self.lookup(stage, key):  # finished between the look and the claim
                return ref, True
            return make(claim), False

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
            self._check_holder(claim)
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
        self._check_holder(claim)
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

    def relative(self, uri: str) -> str:
        """The path of `uri` under the root; IntegrityError if it is of another store."""
        if not uri.startswith(self.root + "/"):
            raise IntegrityError(f"{uri} is not in the store {self.root}.")
        return uri[len(self.root) + 1 :]

    # --- claims

    def _tokens(self, stage: str, key: str) -> list[int]:
        try:
            paths = self.fs.ls(f"{self._path}/claims/{stage}/{key}", detail=False)
        except FileNotFoundError:
            return []
        return sorted(int(stem) for path in paths if (stem := Path(path).stem).isdigit())

    def holder(self, stage: str, key: str) -> dict[str, Any] | None:
        """Who works on `key` just now: {"run_id", "host", "pid", "until"}; None if nobody does."""
        return self._alive(stage, key, self._tokens(stage, key))

    @contextmanager
    def held(self, stage: str, key: str, *, run_id: str) -> Iterator[bool]:
        """Keep others from working on `key` for as long as this lasts; False if somebody is at it already."""
        claim = self._claim(stage, key, run_id)
        if claim is None:
            yield False
        else:
            with self._renewed(claim):
                yield True

    def _alive(self, stage: str, key: str, tokens: list[int]) -> dict[str, Any] | None:
        holder = self.read_json(_claim_path(stage, key, tokens[-1])) if tokens else None
        return None if holder is None or _is_over(holder) else dict(holder)

    def _claim(self, stage: str, key: str, run_id: str) -> Claim | None:
        """The next token of `key`, or None while a living holder has it."""
        tokens = self._tokens(stage, key)
        if self._alive(stage, key, tokens):
            return None
        claim = Claim(stage, key, (tokens or [0])[-1] + 1, run_id)
        first = _holder(claim, time.time() + CLAIM_SECONDS)
        return claim if self._create(_claim_path(stage, key, claim.token), first) else None

    @contextmanager
    def _renewed(self, claim: Claim) -> Iterator[None]:
        """Keep `claim` alive in the background, and give it up at the end."""
        stop = threading.Event()

        def renew() -> None:
            while not stop.wait(CLAIM_SECONDS / 4):
                self._hold(claim, until=time.time() + CLAIM_SECONDS)

        thread = threading.Thread(target=renew, daemon=True, name=f"renew-{claim.stage}")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self._hold(claim, until=0)

    def _hold(self, claim: Claim, *, until: float) -> None:
        """Say how long `claim` holds. A failure is only logged: the next turn, or the claim's end, puts it right."""
        try:
            self._write(_claim_path(claim.stage, claim.key, claim.token), _holder(claim, until))
        except Exception as error:  # noqa: BLE001 - whatever the store's client raises; the work itself goes on
            log.warning("%s %s: the claim could not be renewed: %s", claim.stage, claim.key[:SHORT], error)

    def _check_holder(self, claim: Claim) -> None:
        if self._tokens(claim.stage, claim.key)[-1:] != [claim.token]:
            raise StaleWriterError(
                f"{claim.stage} {claim.key[:SHORT]}: run {claim.run_id} holds token {claim.token}, but another "
                "writer took over while this one was not heard of. Its result is dropped; run again to use the other."
            )


def _claim_path(stage: str, key: str, token: int) -> str:
    return f"claims/{stage}/{key}/{token}.json"


def _holder(claim: Claim, until: float) -> bytes:
    facts = {"run_id": claim.run_id, "host": socket.gethostname(), "pid": os.getpid(), "until": until}
    return json.dumps(facts).encode()


def _is_over(holder: Mapping[str, Any]) -> bool:
    """Given up, not renewed in time, or held by a process of this machine that is gone."""
    if time.time() > holder["until"]:
        return True
    if holder["host"] != socket.gethostname():
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # alive, another user's
        return False
    return False


def is_whole(manifest: Any) -> bool:
    """Whether `manifest` is one of an artifact, and still what was written."""
    return isinstance(manifest, dict) and manifest.get("manifest_sha256") == _digest_manifest(manifest)


def _digest_manifest(manifest: Mapping[str, Any]) -> str:
    """Over all of a manifest but this digest, as it reads back from JSON."""
    rest = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    return digest_json(json.loads(json.dumps(rest)))


def _lost_the_race(error: OSError) -> bool:
    """Whether S3 refused a conditional put: the key is there (412), or somebody is writing it just now (409).

    s3fs makes FileExistsError of it only if the server names the condition, as AWS does and others do not.
    """
    response = getattr(error.__cause__, "response", None) or {}
    return response.get("Error", {}).get("Code") in ("PreconditionFailed", "ConditionalRequestConflict")


def _written_beside(target: Path, data: bytes) -> Path:
    """`data` on disk under a temporary name in the target's folder; readable as the umask says."""
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".writing-{secrets.token_hex(8)}")
    with beside.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    return beside
