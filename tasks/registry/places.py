"""Reading what stands somewhere: a folder, S3, the Hub or a store, all through the same three questions.

`at` opens what a user names, `of_published` what the registry noted, `of_artifact` what lies in a store.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from fsspec.implementations.local import LocalFileSystem

from infra.errors import RequestError, TransientError
from infra.hashing import digest_file, digest_stream
from infra.storage import Store
from tasks.publishing.release import Published

ALLOWED = "a folder, s3://bucket/prefix/NAME/WHAT-DIGEST/, hf://ORG/NAME[@REVISION], or the channel's .json"
HUB = re.compile(r"hf://(?P<repo>[^/@\s]+/[^/@\s]+?)/?(@(?P<revision>[^@\s]+))?")
_CHUNK = 2**20  # bytes


class Place(Protocol):
    """A folder of files, wherever it is. Paths are relative, with forward slashes."""

    @property
    def uri(self) -> str: ...

    def paths(self) -> set[str]:
        """Every file below."""

    def read(self, path: str) -> bytes | None:
        """A small file; None if there is none."""

    def sha256(self, path: str) -> str | None:
        """Of a file that is read anew; None if there is none."""


@dataclass(frozen=True)
class OnDisk:
    """A local folder, or an artifact of a store on any filesystem."""

    uri: str
    fs: Any
    root: str

    def paths(self) -> set[str]:
        found = self.fs.find(self.root, detail=True)
        return {str(Path(path).relative_to(self.root)) for path, info in found.items() if info["type"] != "directory"}

    def read(self, path: str) -> bytes | None:
        try:
            return bytes(self.fs.cat_file(f"{self.root}/{path}"))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def sha256(self, path: str) -> str | None:
        try:
            with self.fs.open(f"{self.root}/{path}", "rb") as stream:
                return digest_stream(stream)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None


@dataclass(frozen=True)
class OnS3:
    """A prefix; read through the client that publishes, so that both understand the same errors and credentials."""

    uri: str
    endpoint_url: str | None

    @cached_property
    def _client(self) -> Any:
        from tasks.publishing.s3_client import connect

        return connect(self.endpoint_url)

    @property
    def _bucket(self) -> str:
        return self.uri.split("/")[2]

    @property
    def _prefix(self) -> str:
        prefix = self.uri.split("/", 3)[3].strip("/")
        return prefix + "/" if prefix else ""

    def paths(self) -> set[str]:
        from tasks.publishing.s3_client import explained

        with explained(self._bucket):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix)
            keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return {key.removeprefix(self._prefix) for key in keys if not key.endswith("/")}

    def read(self, path: str) -> bytes | None:
        with self._opened(path) as body:
            return bytes(body.read()) if body else None

    def sha256(self, path: str) -> str | None:
        found = hashlib.sha256()
        with self._opened(path) as body:
            for chunk in body.iter_chunks(_CHUNK) if body else ():
                found.update(chunk)
            return found.hexdigest() if body else None

    @contextmanager
    def _opened(self, path: str) -> Iterator[Any]:
        from botocore.exceptions import ClientError

        from tasks.publishing.s3_client import ABSENT, code_of, explained

        with explained(self._bucket):
            try:
                body = self._client.get_object(Bucket=self._bucket, Key=self._prefix + path)["Body"]
            except ClientError as error:
                if code_of(error) not in ABSENT:
                    raise
                body = None
            yield body


@dataclass(frozen=True)
class OnHub:
    """One revision of a model repository. Files are downloaded one by one and not kept."""

    uri: str
    repo_id: str
    revision: str | None

    @cached_property
    def _api(self) -> Any:
        from huggingface_hub import HfApi

        return HfApi(endpoint=os.environ.get("HF_ENDPOINT"))  # the library reads it at import only

    def paths(self) -> set[str]:
        with self._explained():
            return set(self._api.list_repo_files(self.repo_id, revision=self.revision)) - {".gitattributes"}

    def read(self, path: str) -> bytes | None:
        with self._downloaded(path) as file:
            return file.read_bytes() if file else None

    def sha256(self, path: str) -> str | None:
        with self._downloaded(path) as file:
            return digest_file(file) if file else None

    @contextmanager
    def _downloaded(self, path: str) -> Iterator[Path | None]:
        from huggingface_hub.errors import RemoteEntryNotFoundError

        with tempfile.TemporaryDirectory() as folder:
            file: Path | None = None
            with self._explained(), suppress(RemoteEntryNotFoundError):
                file = Path(self._api.hf_hub_download(self.repo_id, path, revision=self.revision, local_dir=folder))
            yield file

    @contextmanager
    def _explained(self) -> Iterator[None]:
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            HTTPError,
            LocalEntryNotFoundError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        try:
            yield
        except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
            raise RequestError(
                f"{self.uri}: the Hub shows no such repository or revision to this token; check the name, and HF_TOKEN "
                f"if it is private. {error}"
            ) from error
        except OfflineModeIsEnabled as error:
            raise RequestError(f"{self.uri} cannot be read while HF_HUB_OFFLINE is set") from error
        except HfHubHTTPError as error:
            raise TransientError(f"{self.uri}: the Hub did not answer: {error}") from error
        except (LocalEntryNotFoundError, HTTPError, ConnectionError) as error:  # the first: not asked, nor in the cache
            raise TransientError(f"{self.uri}: the Hub cannot be reached: {error}") from error


def published_digest(manifest: bytes | None) -> str | None:
    """The artifact's digest in a published manifest; None where that is missing or no manifest of ours."""
    try:
        return str(json.loads(manifest or b"")["digest"])
    except (ValueError, KeyError, TypeError):
        return None


def at(uri: str, endpoint_url: str | None = None) -> Place:
    """The folder of files that a user names; RequestError if `uri` is nothing of that kind."""
    if uri.startswith("s3://"):
        if len(uri.split("/")) < 4 or not uri.split("/")[2]:
            raise RequestError(f"{uri!r} names no prefix of a bucket. Allowed: {ALLOWED}.")
        return OnS3(uri.rstrip("/") + "/", endpoint_url)
    if uri.startswith("hf://"):
        found = HUB.fullmatch(uri)
        if not found:
            raise RequestError(f"{uri!r} names no repository of the Hub. Allowed: hf://ORG/NAME or hf://ORG/NAME@TAG.")
        return OnHub(uri, found["repo"], found["revision"])
    if "://" in uri:
        raise RequestError(f"{uri!r} is of no kind that can be read. Allowed: {ALLOWED}.")
    folder = Path(uri).expanduser().absolute()
    if not folder.is_dir():
        raise RequestError(f"there is no folder {folder}. Allowed: NAME@VERSION, {ALLOWED}.")
    return OnDisk(str(folder), LocalFileSystem(), str(folder))


def of_published(published: Published, endpoint_url: str | None) -> Place:
    """What the registry noted of a release that left."""
    if published.to == "hub":
        repo_id = "/".join(published.uri.rstrip("/").split("/")[-2:])
        return OnHub(f"hf://{repo_id}@{published.revision}", repo_id, published.revision)
    if published.to == "s3":
        return OnS3(published.uri.rstrip("/") + "/", endpoint_url)
    return OnDisk(published.uri, LocalFileSystem(), published.uri)


def of_artifact(store: Store, place: str) -> Place:
    """An artifact of a store, by its folder under the root."""
    uri = f"{store.root}/{place}"
    return OnDisk(uri, store.fs, str(store.fs._strip_protocol(uri)))
