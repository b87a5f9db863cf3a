"""Publish to S3, or to anything that speaks S3 (`endpoint_url`), under `<prefix>/<name>/<what>-<digest>/`.

The blobs go first, each with a checksum that the server verifies; `tunefleet.json` goes last and only if it is not
there yet. So a prefix with a manifest is whole, a killed publisher leaves a prefix without one, and of two
publishers at once the second finds the work done. A release that stands is not rewritten, only repaired.

Credentials come from boto3's own chain (environment, profile, instance role), never from an argument.
"""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    ResponseStreamingError,
    SSLError,
)

from infra.errors import Fault, IntegrityError, RequestError, TransientError
from tasks.publishing.release import CARD, MANIFEST, Content, Published, Release, contents, released_files

_ONE_PUT = 64 * 2**20  # bytes; larger files go up in parts of this size
_READ_BACK = 2**20  # bytes; smaller files are downloaded again and hashed
_PROBE = ".tunefleet-write-probe"
_ABSENT = {"404", "NoSuchKey", "NotFound"}
_BUSY = {
    "BadDigest",  # damaged on the way
    "ConditionalRequestConflict",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "XAmzContentSHA256Mismatch",
}
_UNKNOWN_CALLER = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "ExpiredToken",
    "TokenRefreshRequired",
}


def check(bucket: str, prefix: str = "", endpoint_url: str | None = None) -> list[Fault]:
    """What would keep a release from being published there, found before any training.

    Puts an empty object under the prefix, reads it and deletes it again.
    """
    key = _join(prefix, _PROBE)
    try:
        with _explained(bucket):
            client = _client(endpoint_url)
            # Before the put, which makes a missing bucket on some servers. And to whoever may not list, an object that
            # is not there looks forbidden: publishing would stop at it.
            _read(client, bucket, key)
            client.put_object(Bucket=bucket, Key=key, Body=b"")
            _read(client, bucket, key)
            _delete(client, bucket, key)
    except RequestError as error:
        return list(error.faults)
    except TransientError as error:
        return [Fault(str(error))]
    return []


def publish(release: Release, *, bucket: str, prefix: str = "", endpoint_url: str | None = None) -> Published:
    """Put the release into the bucket, or verify and repair the one that already stands there.

    Raises TransientError for what may go through when tried again, RequestError for missing rights or a missing
    bucket, IntegrityError when what stands there is another release or does not read back as it was sent.
    """
    home = _join(prefix, release.name, release.version)
    *blobs, manifest = contents(release)
    with _explained(bucket):
        client = _client(endpoint_url)
        standing = _read(client, bucket, _join(home, MANIFEST))
        if standing is None:
            _store(client, bucket, home, blobs)
            if not _put_manifest(client, bucket, home, manifest):
                standing = _read(client, bucket, _join(home, MANIFEST))
        if standing is not None:
            _store(client, bucket, home, _same_release(standing, blobs, f"s3://{bucket}/{home}/"))
        elif _read(client, bucket, _join(home, MANIFEST)) != manifest.read():
            raise IntegrityError(f"s3://{bucket}/{home}/{MANIFEST} does not read back as it was written")
    return Published(to="s3", uri=f"s3://{bucket}/{home}/")


def _same_release(manifest: bytes, blobs: Sequence[Content], uri: str) -> list[Content]:
    """The blobs that the standing release vouches for: all of them, less a card that has been reworded since."""
    vouched = released_files(manifest)
    if vouched is None:
        raise IntegrityError(f"{uri}{MANIFEST} is damaged: delete that object and publish again")
    ours = {blob.path: blob.sha256 for blob in blobs}
    if {**vouched, CARD: ""} != {**ours, CARD: ""}:
        raise IntegrityError(f"{uri} already holds other files under the same digest: publish under another prefix")
    return [blob for blob in blobs if vouched.get(blob.path) == blob.sha256]


def _store(client: Any, bucket: str, home: str, blobs: Sequence[Content]) -> None:
    for blob in blobs:
        key = _join(home, blob.path)
        if _stands(client, bucket, key, blob):
            continue
        _upload(client, bucket, key, blob)
        if not _stands(client, bucket, key, blob):
            raise IntegrityError(f"s3://{bucket}/{key} does not read back as it was sent: check the server's storage")


def _stands(client: Any, bucket: str, key: str, blob: Content) -> bool:
    try:
        head = client.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
    except ClientError as error:
        if _code(error) in _ABSENT:
            return False
        raise
    if head["ContentLength"] != blob.size or head["Metadata"].get("sha256") != blob.sha256:
        return False
    checksum = head.get("ChecksumSHA256")  # of the parts, with a dash and their number, if it went up in parts
    if checksum is not None and "-" not in checksum and checksum != _base64_sha256(blob):
        return False
    return blob.size > _READ_BACK or hashlib.sha256(_read(client, bucket, key) or b"").hexdigest() == blob.sha256


def _upload(client: Any, bucket: str, key: str, blob: Content) -> None:
    metadata = {"sha256": blob.sha256}
    if isinstance(blob.source, bytes):
        client.put_object(
            Bucket=bucket, Key=key, Body=blob.source, Metadata=metadata, ChecksumSHA256=_base64_sha256(blob)
        )
        return
    with blob.source.open("rb") as file:
        if blob.size <= _ONE_PUT:
            client.put_object(Bucket=bucket, Key=key, Body=file, Metadata=metadata, ChecksumSHA256=_base64_sha256(blob))
            return
        # upload_fileobj and not upload_file, which hides the server's answer in its own error; and never boto3's
        # CRT client, which ignores endpoint_url.
        client.upload_fileobj(
            file,
            bucket,
            key,
            ExtraArgs={"Metadata": metadata, "ChecksumAlgorithm": "SHA256"},
            Config=TransferConfig(
                multipart_threshold=_ONE_PUT, multipart_chunksize=_ONE_PUT, preferred_transfer_client="classic"
            ),
        )


def _put_manifest(client: Any, bucket: str, home: str, manifest: Content) -> bool:
    """False when a manifest is there already: somebody else has released this content in the meantime."""
    try:
        client.put_object(
            Bucket=bucket,
            Key=_join(home, MANIFEST),
            Body=manifest.read(),
            Metadata={"sha256": manifest.sha256},
            ChecksumSHA256=_base64_sha256(manifest),
            ContentType="application/json",
            IfNoneMatch="*",
        )
    except ClientError as error:
        if _status(error) == 412:
            return False
        raise
    return True


def _read(client: Any, bucket: str, key: str) -> bytes | None:
    try:
        body: bytes = client.get_object(Bucket=bucket, Key=key)["Body"].read()
        return body
    except ClientError as error:
        if _code(error) in _ABSENT:
            return None
        raise


def _delete(client: Any, bucket: str, key: str) -> None:
    try:
        client.delete_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if _status(error) != 403:  # storage that can only be added to keeps the probe; publishing never deletes
            raise


def _client(endpoint_url: str | None) -> Any:
    # An S3-compatible server at an address of its own seldom answers to bucket.address.
    style = {"addressing_style": "path"} if endpoint_url else None
    config = Config(connect_timeout=10, read_timeout=60, s3=style)  # seconds
    try:
        # A session of its own: boto3's default one is not safe among threads and holds on to the first credentials.
        return boto3.Session().client("s3", endpoint_url=endpoint_url, config=config)
    except ValueError as error:
        raise RequestError(f"endpoint_url {endpoint_url!r} is not an address: write http(s)://host[:port]") from error


@contextmanager
def _explained(bucket: str) -> Iterator[None]:
    """Turn boto's errors into ours: worth another try, or what to change."""
    try:
        yield
    except ClientError as error:
        raise _translated(error, bucket) from error
    except SSLError as error:
        raise RequestError(f"no secure connection to the S3 server: {error}") from error
    except (ConnectionError, HTTPClientError, IncompleteReadError, ResponseStreamingError) as error:
        raise TransientError(f"the S3 server cannot be reached: {error}") from error
    except NoCredentialsError as error:
        raise RequestError(
            "no AWS credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        ) from error
    except BotoCoreError as error:  # a profile that does not exist, a bucket name that cannot be one
        raise RequestError(f"cannot use s3://{bucket}: {error}") from error


def _translated(error: ClientError, bucket: str) -> RequestError | TransientError:
    code, status = _code(error), _status(error)
    if code in _BUSY or status == 429 or status >= 500:
        return TransientError(f"s3://{bucket} is busy or failing ({code}): {error}")
    if code == "NoSuchBucket":
        return RequestError(_no_bucket(bucket))
    if code in _UNKNOWN_CALLER:
        return RequestError(
            f"the AWS credentials were not accepted for s3://{bucket} ({code}): "
            "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, and that they belong to this server"
        )
    if status in (401, 403):
        return RequestError(
            f"{error.operation_name} on s3://{bucket} was refused ({code}): publishing needs "
            "s3:PutObject and s3:GetObject on the prefix and s3:ListBucket on the bucket"
        )
    return RequestError(f"s3://{bucket} did not accept {error.operation_name}: {error}")


def _no_bucket(bucket: str) -> str:
    return f"the bucket {bucket!r} does not exist: create it, or correct its name, region or endpoint_url"


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _base64_sha256(blob: Content) -> str:
    return base64.b64encode(bytes.fromhex(blob.sha256)).decode()


def _join(*parts: str) -> str:
    return "/".join(part.strip("/") for part in parts if part.strip("/"))
