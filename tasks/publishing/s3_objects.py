"""The objects of one bucket: sent with checksums that the server verifies, and believed only when they read back.

Large files go up in parts, several at a time. A multipart upload that a killed publisher left under the same key is
taken up where it stopped; two living publishers of the same file may share one, since they send the same parts, and
whoever finds it gone finds the object there.
"""

import base64
import hashlib
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from botocore.exceptions import ClientError

from infra.errors import IntegrityError
from tasks.publishing.release import Content
from tasks.publishing.s3_client import ABSENT, THREADS, code_of, status_of

PART = 16 * 2**20  # bytes; larger files go up in parts of this size, so THREADS * PART is held in memory
_MOST_PARTS = 10_000  # S3 allows no more
READ_BACK = 2**20  # bytes; smaller files are downloaded again and hashed, whatever the server says of them
_CHUNK = 2**20  # bytes
_UPLOAD_GONE = {"NoSuchUpload", "InvalidPart"}  # somebody else has completed it, or aborted it, or sent other parts


@dataclass(frozen=True)
class Unfinished:
    """A multipart upload that was neither completed nor aborted; its parts cost money and nobody can read them."""

    key: str
    id: str
    started: datetime


@dataclass(frozen=True)
class Bucket:
    client: Any  # of boto3
    name: str

    def read(self, key: str) -> tuple[bytes, str] | None:
        """An object and its ETag; None if there is none."""
        try:
            answer = self.client.get_object(Bucket=self.name, Key=key)
            return answer["Body"].read(), answer["ETag"]
        except ClientError as error:
            if code_of(error) in ABSENT:
                return None
            raise

    def listed(self, prefix: str) -> dict[str, tuple[int, datetime]]:
        """Size in bytes and time of writing of every object under `prefix`, by key."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        return {
            entry["Key"]: (entry["Size"], entry["LastModified"]) for page in pages for entry in page.get("Contents", [])
        }

    def put_if(self, key: str, data: bytes, standing: str | None) -> bool:
        """Put a small object if what stands has the ETag `standing` (None: if nothing stands). False: it does not."""
        condition = {"IfNoneMatch": "*"} if standing is None else {"IfMatch": standing}
        sha256 = hashlib.sha256(data)
        for pause in (0.2, 1.0, None):  # seconds
            try:
                self.client.put_object(
                    Bucket=self.name,
                    Key=key,
                    Body=data,
                    Metadata={"sha256": sha256.hexdigest()},
                    ChecksumSHA256=_base64(sha256.digest()),
                    ContentType="application/json",
                    **condition,
                )
                return True
            except ClientError as error:
                if status_of(error) == 412 or (standing is not None and code_of(error) in ABSENT):
                    return False
                if status_of(error) != 409 or pause is None:  # 409: another write of this key was under way
                    raise
                time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def delete(self, key: str) -> None:
        try:
            self.client.delete_object(Bucket=self.name, Key=key)
        except ClientError as error:
            if status_of(error) != 403:  # storage that can only be added to keeps it
                raise

    # --- files

    def store(self, blob: Content, key: str, twin: str | None = None) -> None:
        """Have `blob` stand at `key`: nothing is sent if it does, and little if the object `twin` has the same bytes.

        IntegrityError if the file changes meanwhile, or does not read back as it was sent.
        """
        if self.stands(blob, key):
            return
        for source in (twin, None, None):
            try:
                self._send(blob, key, source)
            except ClientError as error:
                # A twin that is gone or does not fit is no more than a saving lost.
                if source is None and code_of(error) not in _UPLOAD_GONE:
                    raise
            if self.stands(blob, key):
                return
        raise IntegrityError(f"s3://{self.name}/{key} does not read back as it was sent: check the server's storage")

    def stands(self, blob: Content, key: str) -> bool:
        """Whether the object is there with exactly these bytes.

        The server's own SHA-256 is believed for large objects; where it has none that compares, all is read and hashed.
        """
        try:
            head = self.client.head_object(Bucket=self.name, Key=key, ChecksumMode="ENABLED")
        except ClientError as error:
            if code_of(error) in ABSENT:
                return False
            raise
        if head["ContentLength"] != blob.size or head["Metadata"].get("sha256") != blob.sha256:
            return False
        checksum, _, parts = head.get("ChecksumSHA256", "").partition("-")
        if checksum and not parts and checksum != _base64(bytes.fromhex(blob.sha256)):
            return False
        if parts and int(parts) == _count(blob):
            return bool(checksum == _of_parts(blob))
        if checksum and not parts and blob.size > READ_BACK:
            return True
        return self._sha256(key) == blob.sha256

    def _sha256(self, key: str) -> str | None:
        try:
            body = self.client.get_object(Bucket=self.name, Key=key)["Body"]
        except ClientError as error:
            if code_of(error) in ABSENT:
                return None
            raise
        found = hashlib.sha256()
        for chunk in body.iter_chunks(_CHUNK):
            found.update(chunk)
        return found.hexdigest()

    def _send(self, blob: Content, key: str, twin: str | None) -> None:
        place = {"Bucket": self.name, "Key": key}
        described = {"Metadata": {"sha256": blob.sha256}}
        if blob.size > PART:
            self._send_parts(blob, place, described, twin)
        elif twin is not None:
            self.client.copy_object(
                **place,
                **described,
                CopySource=self._source(twin),
                MetadataDirective="REPLACE",
                ChecksumAlgorithm="SHA256",
            )
        else:
            checksum = _base64(bytes.fromhex(blob.sha256))
            self.client.put_object(**place, **described, Body=blob.read(), ChecksumSHA256=checksum)

    def _send_parts(self, blob: Content, place: dict[str, str], described: dict[str, Any], twin: str | None) -> None:
        left = [one.id for one in self.unfinished(place["Key"]) if one.key == place["Key"]]
        if left:
            upload = {**place, "UploadId": left[0]}
        else:
            made = self.client.create_multipart_upload(**place, **described, ChecksumAlgorithm="SHA256")
            upload = {**place, "UploadId": made["UploadId"]}
        there = self._parts(upload) if left else {}

        def send(number: int, data: bytes) -> dict[str, Any]:
            checksum = _base64(hashlib.sha256(data).digest())
            # Not every server lists the parts' SHA-256. MD5 picks what need not be sent; SHA-256 verifies the whole.
            etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
            if there.get(number) != etag:
                numbered = {**upload, "PartNumber": number}
                if twin is None:
                    etag = self.client.upload_part(**numbered, Body=data, ChecksumSHA256=checksum)["ETag"]
                else:
                    start = (number - 1) * _part_size(blob)
                    span = f"bytes={start}-{start + len(data) - 1}"
                    copied = self.client.upload_part_copy(
                        **numbered, CopySource=self._source(twin), CopySourceRange=span
                    )
                    etag = copied["CopyPartResult"]["ETag"]
            return {"PartNumber": number, "ETag": etag, "ChecksumSHA256": checksum}

        whole = hashlib.sha256()
        running: deque[Future[dict[str, Any]]] = deque()
        sent = []
        with ThreadPoolExecutor(THREADS) as pool:
            for number, data in enumerate(_pieces(blob), 1):
                whole.update(data)
                running.append(pool.submit(send, number, data))
                if len(running) == THREADS:
                    sent.append(running.popleft().result())
            sent += [future.result() for future in running]
        if whole.hexdigest() != blob.sha256:
            self.client.abort_multipart_upload(**upload)
            raise IntegrityError(f"{blob.path} changed while it was being published; publish again")
        self.client.complete_multipart_upload(**upload, MultipartUpload={"Parts": sent})

    def _parts(self, upload: dict[str, str]) -> dict[int, str]:
        """ETags of the parts that the server has, by number."""
        try:
            pages = list(self.client.get_paginator("list_parts").paginate(**upload))
        except ClientError as error:
            if code_of(error) in _UPLOAD_GONE:  # completed by another publisher: sending will tell
                return {}
            raise
        return {part["PartNumber"]: part["ETag"].strip('"') for page in pages for part in page.get("Parts", [])}

    def _source(self, key: str) -> dict[str, str]:
        return {"Bucket": self.name, "Key": key}

    # --- what killed publishers leave

    def unfinished(self, prefix: str) -> list[Unfinished]:
        """The multipart uploads under `prefix`, the oldest first."""
        pages = self.client.get_paginator("list_multipart_uploads").paginate(Bucket=self.name, Prefix=prefix)
        found = [
            Unfinished(one["Key"], one["UploadId"], one["Initiated"])
            for page in pages
            for one in page.get("Uploads", [])
        ]
        return sorted(found, key=lambda one: (one.started, one.id))

    def abort(self, uploads: Iterable[Unfinished]) -> None:
        for one in uploads:
            try:
                self.client.abort_multipart_upload(Bucket=self.name, Key=one.key, UploadId=one.id)
            except ClientError as error:
                if code_of(error) not in _UPLOAD_GONE:
                    raise


def _part_size(blob: Content) -> int:
    return max(PART, math.ceil(blob.size / _MOST_PARTS))


def _count(blob: Content) -> int:
    return math.ceil(blob.size / _part_size(blob))


def _pieces(blob: Content) -> Iterator[bytes]:
    if isinstance(blob.source, bytes):
        yield from (blob.source[at : at + _part_size(blob)] for at in range(0, blob.size, _part_size(blob)))
        return
    with blob.source.open("rb") as file:
        while data := file.read(_part_size(blob)):
            yield data


def _of_parts(blob: Content) -> str:
    """What S3 calls the composite checksum: of the parts' checksums."""
    return _base64(hashlib.sha256(b"".join(hashlib.sha256(data).digest() for data in _pieces(blob))).digest())


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
