"""Files under one root, a local folder or `s3://bucket/prefix` (any fsspec filesystem with exclusive creation).

All that others rest on are two writes: replace a file as a whole, and create one exclusively. Neither is ever seen half
done, and of several who create the same file one succeeds.
"""

import json
import os
import secrets
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from infra.errors import IntegrityError, RequestError


class Files:
    """What lies under one root; paths are relative to it. Safe for many processes and machines at once."""

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

    def read_json(self, path: str) -> Any | None:
        """The JSON at `path` (relative to the root), or None if there is none or it is cut short."""
        try:
            return json.loads(self.fs.cat_file(f"{self._path}/{path}"))
        except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
            return None

    def write_json(self, path: str, value: Any) -> str:
        """Replace the file at `path` as a whole; returns its uri."""
        self.write(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode())
        return f"{self.root}/{path}"

    def create_json(self, path: str, value: Any) -> bool:
        """Write the file at `path` only if there is none; False if there is. Of several writers one succeeds."""
        return self.create(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode())

    def list_names(self, path: str) -> list[str]:
        """Names of what lies in the folder `path`, sorted; none if there is no such folder."""
        try:
            entries = self.fs.ls(f"{self._path}/{path}", detail=False)
        except FileNotFoundError:
            return []
        names = (Path(entry).name for entry in entries)
        return sorted(name for name in names if not name.startswith("."))

    def write(self, path: str, data: bytes) -> None:
        """Replace the file at `path` as a whole."""
        target = f"{self._path}/{path}"
        if not self.is_local:
            self.fs.pipe_file(target, data)  # a single PUT is atomic
            return
        beside = _written_beside(Path(target), data)
        beside.replace(target)

    def create(self, path: str, data: bytes) -> bool:
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

    def relative(self, uri: str) -> str:
        """The path of `uri` under the root; IntegrityError if it is of another store."""
        if not uri.startswith(self.root + "/"):
            raise IntegrityError(f"{uri} is not in the store {self.root}.")
        return uri[len(self.root) + 1 :]


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
