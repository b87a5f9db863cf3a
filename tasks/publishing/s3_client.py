"""A connection to S3 or to what speaks S3, and what its answers mean: worth another try, or what to change.

Credentials come from boto3's own chain (environment, profile, instance role), never from an argument or an address.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.session
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
from botocore.loaders import create_loader

from infra.errors import RequestError, TransientError

THREADS = 8  # requests at a time
ABSENT = {"404", "NoSuchKey", "NotFound"}
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
_ELSEWHERE = {"301", "307", "PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
_FULL = {"XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded", "InsufficientStorage"}
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_NAMES = {"InvalidBucketName", "KeyTooLongError", "InvalidURI", "XMinioInvalidObjectName"}


def connect(endpoint_url: str | None) -> Any:
    """A boto3 client, which threads may share."""
    if endpoint_url and ("@" in endpoint_url or urlsplit(endpoint_url).query):
        raise RequestError(
            "endpoint_url holds a user, a password or a query (not repeated here): write http(s)://host[:port] alone, "
            "and give credentials as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    # An S3-compatible server at an address of its own seldom answers to bucket.address.
    style = {"addressing_style": "path"} if endpoint_url else None
    config = Config(connect_timeout=10, read_timeout=60, s3=style, max_pool_connections=THREADS)  # seconds
    # A session of its own: boto3's default one is not safe among threads and holds on to the first credentials.
    core = botocore.session.Session()
    core.register_component("data_loader", _loader())
    session = boto3.Session(botocore_session=core)
    _refuse_broken(session.get_credentials())
    try:
        return session.client("s3", endpoint_url=endpoint_url, config=config)
    except ValueError as error:
        raise RequestError(f"endpoint_url {endpoint_url!r} is not an address: write http(s)://host[:port]") from error


@cache
def _loader() -> Any:
    """What boto knows about S3, read from its files once: most of the time that a new session takes."""
    return create_loader()


def _refuse_broken(credentials: Any) -> None:
    """A line break, often at the end of what was read from a file: the error that it makes would show the secret."""
    if credentials is None:
        return
    frozen = credentials.get_frozen_credentials()
    parts = {"access key": frozen.access_key, "secret key": frozen.secret_key, "session token": frozen.token}
    if broken := [name for name, value in parts.items() if value and value != "".join(value.split())]:
        raise RequestError(f"the AWS {' and '.join(broken)} holds a space or a line break: set it again without")


@contextmanager
def explained(bucket: str) -> Iterator[None]:
    """Turn boto's errors into ours; RequestError at once for what cannot be a bucket's name."""
    if not _BUCKET.fullmatch(bucket):
        # Not repeated: in s3://KEY:SECRET@bucket, say, it is a secret, or as much of it as there is before a slash.
        raise RequestError(
            "what stands behind s3:// (not repeated here) is no bucket: its name has 3 to 63 of a-z, 0-9, dot and "
            "hyphen, the first and the last a letter or a digit. Write s3://bucket/prefix, and give credentials as "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
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
    except BotoCoreError as error:  # a profile that does not exist
        raise RequestError(f"cannot use s3://{bucket}: {error}") from error


def _translated(error: ClientError, bucket: str) -> RequestError | TransientError:
    code, status = code_of(error), status_of(error)
    if code in _FULL or status == 507:
        return RequestError(
            f"the server of s3://{bucket} has no space left, or its quota is used up ({code}): make room there, "
            "or publish elsewhere. Nothing was released"
        )
    if code in _BUSY or status == 429 or (status >= 500 and code != "NotImplemented"):
        return TransientError(
            f"s3://{bucket} is busy or failing ({code}); if it stays so, ask whoever runs it (some answer like this "
            f"when their disk is full): {error}"
        )
    if code == "NoSuchBucket":
        return RequestError(
            f"the bucket {bucket!r} does not exist: create it, or correct its name, region or endpoint_url"
        )
    if code == "RequestTimeTooSkewed":
        return RequestError(
            f"this machine's clock is not the one of the server of s3://{bucket} (at most 15 minutes apart are "
            "allowed): set the clock, for example by turning on NTP (timedatectl set-ntp true), and try again"
        )
    if code in _UNKNOWN_CALLER:
        return RequestError(
            f"the AWS credentials were not accepted for s3://{bucket} ({code}): "
            "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, and that they belong to this server"
        )
    if code in _ELSEWHERE or status == 301:
        region = _region(error)
        there = f"is in region {region}" if region else "is in another region"
        return RequestError(
            f"s3://{bucket} {there} ({code}): set AWS_DEFAULT_REGION={region or 'to it'}, or correct endpoint_url"
        )
    if code in _NAMES:
        return RequestError(
            f"s3://{bucket} does not allow that name ({code}): a bucket has 3 to 63 of a-z, 0-9, dot and hyphen; "
            "prefix and file together have at most 1024 bytes"
        )
    if status in (401, 403):
        return RequestError(
            f"{error.operation_name} on s3://{bucket} was refused ({code}): publishing needs s3:PutObject, "
            "s3:GetObject, s3:ListMultipartUploadParts and s3:AbortMultipartUpload on the prefix, s3:ListBucket and "
            "s3:ListBucketMultipartUploads on the bucket"
        )
    return RequestError(f"s3://{bucket} did not accept {error.operation_name}: {error}")


def _region(error: ClientError) -> str:
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return str(error.response.get("Error", {}).get("Region") or headers.get("x-amz-bucket-region") or "")


def code_of(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
