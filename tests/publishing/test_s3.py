"""Publishing to S3, against a real server."""

import hashlib
import io
import json
import random
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig
from botocore import auth
from botocore.client import BaseClient
from botocore.exceptions import ClientError

from infra.errors import IntegrityError, RequestError, TransientError
from tasks.publishing import s3 as publishing
from tasks.publishing import s3_objects
from tasks.publishing.release import Published, Release, contents
from tasks.publishing.s3_objects import Bucket
from tests.publishing import OVERRIDDEN, PUBLISHED, ROOT, make_release
from tests.publishing.s3_server import BUCKET, S3Server

PART = 5 * 2**20  # bytes, the least that S3 allows of a part that is not the last

# Publishes what make_release made and kills itself just before, or just after, the given one of its puts.
PUBLISHER = """
import os, signal, sys
from pathlib import Path
from botocore.client import BaseClient
from tasks.publishing import s3
from tests.publishing import make_release

artifact, endpoint_url, bucket, prefix, when, last_put = sys.argv[1:]
call, puts = BaseClient._make_api_call, 0

def counted(client, operation, arguments):
    global puts
    puts += operation == "PutObject"
    dies = operation == "PutObject" and puts == int(last_put)
    if dies and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    answer = call(client, operation, arguments)
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
    return answer

BaseClient._make_api_call = counted
s3.publish(make_release(Path(artifact)), bucket=bucket, prefix=prefix, endpoint_url=endpoint_url)
"""


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return make_release(tmp_path / "artifact")


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return f"tests/{tmp_path.name}"


@pytest.fixture
def publish(s3: S3Server, prefix: str) -> Callable[[Release], Published]:
    return lambda release: publishing.publish(release, bucket=BUCKET, prefix=prefix, endpoint_url=s3.endpoint_url)


@pytest.fixture
def puts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys that are put, as they are put."""
    keys: list[str] = []
    call = BaseClient._make_api_call

    def listening(client: Any, operation: str, arguments: dict[str, Any]) -> Any:
        if operation in ("PutObject", "CreateMultipartUpload"):
            keys.append(arguments["Key"])
        return call(client, operation, arguments)

    monkeypatch.setattr(BaseClient, "_make_api_call", listening)
    return keys


def home(prefix: str, release: Release) -> str:
    return f"{prefix}/capitals/{release.slug}/"


def whole(prefix: str, release: Release) -> dict[str, bytes]:
    return {home(prefix, release) + content.path: content.read() for content in contents(release)}


def test_the_prefix_holds_exactly_the_release(s3: S3Server, release: Release, prefix: str, publish, puts: list[str]):
    published = publish(release)
    assert (published.to, published.uri) == ("s3", f"s3://{BUCKET}/{home(prefix, release)}")
    assert s3.objects(prefix) == whole(prefix, release)
    assert {key.removeprefix(home(prefix, release)) for key in s3.objects(prefix)} == PUBLISHED
    assert puts[-1] == home(prefix, release) + "tunefleet.json"


def test_the_server_has_checked_every_object(s3: S3Server, release: Release, prefix: str, publish):
    publish(release)
    for content in contents(release):
        key = home(prefix, release) + content.path
        head = s3.client.head_object(Bucket=BUCKET, Key=key, ChecksumMode="ENABLED")
        assert head["Metadata"]["sha256"] == content.sha256
        assert len(head["ChecksumSHA256"]) == 44


def test_publishing_again_puts_nothing(release: Release, publish, puts: list[str]):
    first = publish(release)
    puts.clear()
    assert publish(release) == first
    assert puts == []


def test_what_a_half_release_already_has_is_not_sent_again(
    s3: S3Server, release: Release, prefix: str, publish, puts: list[str]
):
    publish(release)
    for path in ("tunefleet.json", "adapter_config.json"):
        s3.client.delete_object(Bucket=BUCKET, Key=home(prefix, release) + path)
    puts.clear()
    publish(release)
    assert [key.removeprefix(home(prefix, release)) for key in puts] == ["adapter_config.json", "tunefleet.json"]
    assert s3.objects(prefix) == whole(prefix, release)


@pytest.mark.parametrize("read_back", [2**20, 0], ids=["small file", "large file"])
@pytest.mark.parametrize("damage", ["missing", "other size", "no metadata", "same metadata"])
def test_a_damaged_object_is_replaced(
    s3: S3Server, release: Release, prefix: str, publish, monkeypatch, damage: str, read_back: int
):
    monkeypatch.setattr(s3_objects, "READ_BACK", read_back)  # bytes; what is larger is judged by what the server says
    publish(release)
    place = {"Bucket": BUCKET, "Key": home(prefix, release) + "adapter_model.safetensors"}
    data = release.folder.joinpath("adapter_model.safetensors").read_bytes()
    kept = s3.client.head_object(**place)["Metadata"]
    match damage:
        case "missing":
            s3.client.delete_object(**place)
        case "other size":
            s3.client.put_object(**place, Body=data[:100], Metadata=kept)
        case "no metadata":
            s3.client.put_object(**place, Body=b"\xff" + data[1:])
        case "same metadata":
            s3.client.put_object(**place, Body=b"\xff" + data[1:], Metadata=kept, ChecksumAlgorithm="SHA256")
    publish(release)
    assert s3.objects(prefix) == whole(prefix, release)


def test_large_files_go_up_in_parts(s3: S3Server, tmp_path: Path, prefix: str, publish, puts, monkeypatch):
    monkeypatch.setattr(s3_objects, "PART", PART)
    release = make_release(tmp_path / "large", {"model.safetensors": bytes(range(256)) * 4096 * 11})
    publish(release)
    key = home(prefix, release) + "model.safetensors"
    assert s3.client.head_object(Bucket=BUCKET, Key=key, ChecksumMode="ENABLED")["ChecksumSHA256"].endswith("-3")
    assert s3.objects(prefix) == whole(prefix, release)
    puts.clear()
    publish(release)
    assert puts == []


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Release:
    """A release with one file of three parts."""
    monkeypatch.setattr(s3_objects, "PART", PART)
    return make_release(tmp_path / "large", {"model.safetensors": random.Random(1).randbytes(2 * PART + 1000)})


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Operation and end of the key, of every request, as they are made."""
    made: list[tuple[str, str]] = []
    call = BaseClient._make_api_call

    def listening(client: Any, operation: str, arguments: dict[str, Any]) -> Any:
        made.append((operation, arguments.get("Key", "").rpartition("/")[2]))
        return call(client, operation, arguments)

    monkeypatch.setattr(BaseClient, "_make_api_call", listening)
    return made


def begin(s3: S3Server, prefix: str, release: Release, parts: dict[int, bytes]) -> None:
    """What a publisher leaves that is killed while it sends model.safetensors."""
    place = {"Bucket": BUCKET, "Key": home(prefix, release) + "model.safetensors"}
    digest = whole(prefix, release)[place["Key"]]
    made = s3.client.create_multipart_upload(
        **place, Metadata={"sha256": hashlib.sha256(digest).hexdigest()}, ChecksumAlgorithm="SHA256"
    )
    for number, data in parts.items():
        s3.client.upload_part(
            **place, UploadId=made["UploadId"], PartNumber=number, Body=data, ChecksumAlgorithm="SHA256"
        )


def test_an_upload_that_was_cut_off_goes_on_where_it_stopped(
    s3: S3Server, large: Release, prefix: str, publish, requests: list[tuple[str, str]]
):
    data = (large.folder / "model.safetensors").read_bytes()
    begin(s3, prefix, large, {1: data[:PART], 2: bytes(PART)})  # the first part is right, the second is not
    begin(s3, prefix, large, {3: data[2 * PART :]})  # a second one, of no more use
    requests.clear()
    publish(large)
    assert requests.count(("UploadPart", "model.safetensors")) == 2
    assert ("CreateMultipartUpload", "model.safetensors") not in requests
    assert s3.objects(prefix) == whole(prefix, large)
    assert s3.uploads(prefix) == []


def test_an_upload_that_somebody_aborts_meanwhile_starts_again(
    s3: S3Server, large: Release, prefix: str, publish, monkeypatch
):
    call, aborted = BaseClient._make_api_call, []

    def aborting(client: Any, operation: str, arguments: dict[str, Any]) -> Any:
        if operation == "CompleteMultipartUpload" and not aborted:
            aborted.append(arguments["UploadId"])
            place = {key: arguments[key] for key in ("Bucket", "Key", "UploadId")}
            call(client, "AbortMultipartUpload", place)
        return call(client, operation, arguments)

    monkeypatch.setattr(BaseClient, "_make_api_call", aborting)
    publish(large)
    assert len(aborted) == 1
    assert s3.objects(prefix) == whole(prefix, large)
    assert s3.uploads(prefix) == []


def test_publishers_of_one_release_at_once_all_find_it_whole(s3: S3Server, large: Release, prefix: str, publish):
    with ThreadPoolExecutor(4) as pool:
        uris = {published.uri for published in pool.map(publish, [large] * 4)}
    assert uris == {f"s3://{BUCKET}/{home(prefix, large)}"}
    assert s3.objects(prefix) == whole(prefix, large)
    assert s3.uploads(prefix) == []


def test_what_others_may_still_be_sending_is_left_for_a_day(
    s3: S3Server, large: Release, release: Release, prefix: str, publish, monkeypatch
):
    begin(s3, prefix, large, {})
    publish(release)
    assert s3.uploads(prefix) == [home(prefix, large) + "model.safetensors"]
    monkeypatch.setattr(publishing, "_ABANDONED", timedelta(days=-1))
    publish(release)
    assert s3.uploads(prefix) == []


def test_a_large_file_that_changes_meanwhile_is_not_released(
    s3: S3Server, large: Release, prefix: str, publish, monkeypatch
):
    send = Bucket._send

    def change_then_send(*arguments: Any) -> None:
        file = large.folder / "model.safetensors"
        file.write_bytes(bytes(file.stat().st_size))
        send(*arguments)

    monkeypatch.setattr(Bucket, "_send", change_then_send)
    with pytest.raises(IntegrityError, match=r"model\.safetensors changed"):
        publish(large)
    assert s3.keys(prefix) == [home(prefix, large) + "README.md"]
    assert s3.uploads(prefix) == []


@pytest.mark.parametrize("part", [PART, PART + 2**20], ids=["the same parts", "other parts"])
@pytest.mark.parametrize("damaged", [False, True], ids=["whole", "damaged"])
def test_a_large_object_is_hashed_however_it_went_up(
    s3: S3Server, large: Release, prefix: str, publish, puts: list[str], monkeypatch, part: int, damaged: bool
):
    publish(large)
    if damaged:
        key = home(prefix, large) + "model.safetensors"
        kept = s3.client.head_object(Bucket=BUCKET, Key=key)["Metadata"]
        data = b"\xff" + whole(prefix, large)[key][1:]
        s3.client.upload_fileobj(
            io.BytesIO(data),
            BUCKET,
            key,
            ExtraArgs={"Metadata": kept, "ChecksumAlgorithm": "SHA256"},
            Config=TransferConfig(multipart_threshold=PART, multipart_chunksize=PART),
        )
        assert s3.objects(prefix) != whole(prefix, large)
    monkeypatch.setattr(s3_objects, "PART", part)
    puts.clear()
    publish(large)
    assert s3.objects(prefix) == whole(prefix, large)
    assert len(puts) == damaged


@pytest.mark.parametrize("size", [PART // 2, PART + 1000], ids=["in one piece", "in parts"])
@pytest.mark.parametrize("twin", ["whole", "damaged", "gone", "of no release"])
def test_what_another_release_holds_is_copied_on_the_server(
    s3: S3Server, tmp_path: Path, prefix: str, publish, requests, monkeypatch, size: int, twin: str
):
    monkeypatch.setattr(s3_objects, "PART", PART)
    files = {"tokenizer.json": random.Random(2).randbytes(size)}
    first = make_release(tmp_path / "first", {**files, "adapter_config.json": b"1"})
    second = make_release(tmp_path / "second", {"renamed/tokenizer.json": files["tokenizer.json"], "config.json": b"2"})
    publish(first)
    held = {"Bucket": BUCKET, "Key": home(prefix, first) + "tokenizer.json"}
    match twin:
        case "damaged":
            kept = s3.client.head_object(**held)["Metadata"]
            s3.client.put_object(**held, Body=bytes(size), Metadata=kept, ChecksumAlgorithm="SHA256")
        case "gone":
            monkeypatch.setattr(publishing, "_twins", lambda *_: {blob_sha256(second): f"{prefix}/gone"})
        case "of no release":
            s3.client.delete_object(Bucket=BUCKET, Key=home(prefix, first) + "tunefleet.json")
    requests.clear()
    publish(second)
    assert whole(prefix, second).items() <= s3.objects(prefix).items()
    assert s3.uploads(prefix) == []
    copied = {operation for operation, key in requests if key == "tokenizer.json" and "Copy" in operation}
    sent = {operation for operation, key in requests if key == "tokenizer.json"} & {"PutObject", "UploadPart"}
    assert bool(copied) == (twin != "of no release")
    assert bool(sent) == (twin != "whole")


def blob_sha256(release: Release) -> str:
    return next(blob.sha256 for blob in contents(release) if blob.path.endswith("tokenizer.json"))


def test_somebody_who_was_faster_has_done_the_work(s3: S3Server, release: Release, prefix: str, publish, monkeypatch):
    put_if = Bucket.put_if
    answers: list[bool] = []

    def after_somebody_else(*arguments: Any) -> bool:
        answers.extend([put_if(*arguments), put_if(*arguments)])
        return answers[-1]

    monkeypatch.setattr(Bucket, "put_if", after_somebody_else)
    publish(release)
    assert answers == [True, False]
    assert s3.objects(prefix) == whole(prefix, release)


def test_a_standing_release_keeps_its_card(s3: S3Server, release: Release, tmp_path: Path, prefix: str, publish):
    publish(release)
    publish(make_release(tmp_path / "artifact", card=release.card + "\nReworded.\n", manifest={"later": True}))
    assert s3.objects(prefix) == whole(prefix, release)


def test_a_standing_card_that_tells_another_reason_is_not_passed_on(
    s3: S3Server, release: Release, prefix: str, publish
):
    publish(release)
    with pytest.raises(RequestError, match=r"releases/tests/.* released without an override; this is capitals v2"):
        publish(replace(release, number=2, manifest=OVERRIDDEN))
    assert s3.objects(prefix) == whole(prefix, release)


def test_other_files_under_the_same_digest_are_refused(
    s3: S3Server, release: Release, tmp_path: Path, prefix: str, publish
):
    publish(release)
    other = make_release(tmp_path / "other", {"adapter_config.json": b"{}"})
    standing = whole(prefix, release)[home(prefix, release) + "tunefleet.json"]
    s3.client.put_object(Bucket=BUCKET, Key=home(prefix, other) + "tunefleet.json", Body=standing)
    with pytest.raises(IntegrityError, match="already holds other files"):
        publish(other)
    assert s3.objects(home(prefix, other)) == {home(prefix, other) + "tunefleet.json": standing}


def test_a_damaged_manifest_is_not_taken_for_a_release(s3: S3Server, release: Release, prefix: str, publish):
    key = home(prefix, release) + "tunefleet.json"
    s3.client.put_object(Bucket=BUCKET, Key=key, Body=b'{"fil')
    with pytest.raises(IntegrityError, match="delete that object"):
        publish(release)


def test_a_file_that_changes_meanwhile_is_caught_by_the_server(
    s3: S3Server, release: Release, prefix: str, publish, monkeypatch
):
    send = Bucket._send

    def change_then_send(*arguments: Any) -> None:
        release.folder.joinpath("adapter_config.json").write_bytes(b'{"r": 9}\n')
        send(*arguments)

    monkeypatch.setattr(Bucket, "_send", change_then_send)
    with pytest.raises(TransientError, match="BadDigest"):
        publish(release)
    assert home(prefix, release) + "tunefleet.json" not in s3.objects(prefix)


@pytest.mark.parametrize(("when", "last_put"), [("before", 1), ("after", 2), ("before", 5), ("after", 5)])
def test_a_killed_publisher_leaves_no_half_release(
    s3: S3Server, release: Release, prefix: str, publish, when: str, last_put: int
):
    arguments = [str(release.folder), s3.endpoint_url, BUCKET, prefix, when, str(last_put)]
    killed = subprocess.run([sys.executable, "-c", PUBLISHER, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = s3.objects(prefix)
    if last_put == len(PUBLISHED):  # the manifest; of the others several are under way at a time
        assert len(left) == last_put - (when == "before")
    assert (home(prefix, release) + "tunefleet.json" in left) == (left == whole(prefix, release))
    publish(release)
    assert s3.objects(prefix) == whole(prefix, release)


def test_no_secret_is_published(s3: S3Server, release: Release, prefix: str, publish):
    publish(release)
    for data in s3.objects(prefix).values():
        assert s3.secret_key.encode() not in data
        assert s3.access_key.encode() not in data


def test_check_finds_no_fault_and_leaves_nothing(s3: S3Server, prefix: str):
    assert publishing.check(BUCKET, prefix, s3.endpoint_url) == []
    assert s3.objects(prefix) == {}


NO_RIGHTS = {
    "no credentials": ({}, "no AWS credentials were found"),
    "half of them": ({"AWS_ACCESS_KEY_ID": "writer"}, "AWS_SECRET_ACCESS_KEY"),
    "unknown key": ({"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "x"}, "InvalidAccessKeyId"),
    "wrong secret": ({"AWS_ACCESS_KEY_ID": "writer", "AWS_SECRET_ACCESS_KEY": "x"}, "SignatureDoesNotMatch"),
    "read only": ({"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "reader-secret-key"}, "s3:PutObject"),
    "no such profile": ({"AWS_PROFILE": "nowhere"}, "nowhere"),
}


@pytest.mark.parametrize(("environment", "says"), NO_RIGHTS.values(), ids=NO_RIGHTS)
def test_what_is_wrong_with_the_credentials_is_said(
    s3: S3Server, release: Release, prefix: str, publish, monkeypatch, environment: dict[str, str], says: str
):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (fault,) = publishing.check(BUCKET, prefix, s3.endpoint_url)
    assert says in fault.message
    with pytest.raises(RequestError, match=says):
        publish(release)
    assert s3.objects(prefix) == {}


@pytest.mark.parametrize("hours", [1, -1])
def test_a_clock_that_is_wrong_is_said(s3: S3Server, release: Release, prefix: str, publish, monkeypatch, hours: int):
    now = auth.get_current_datetime
    monkeypatch.setattr(auth, "get_current_datetime", lambda *a, **k: now(*a, **k) + timedelta(hours=hours))
    (fault,) = publishing.check(BUCKET, prefix, s3.endpoint_url)
    assert "set the clock" in fault.message
    with pytest.raises(RequestError, match="clock"):
        publish(release)


@pytest.mark.parametrize(
    ("bucket", "prefix", "says"),
    [("Upper_Case", "tests", "is no bucket"), (BUCKET, "x" * 1100, "does not allow that name")],
)
def test_a_name_that_is_not_allowed_is_said(s3: S3Server, release: Release, bucket: str, prefix: str, says: str):
    (fault,) = publishing.check(bucket, prefix, s3.endpoint_url)
    assert says in fault.message
    with pytest.raises(RequestError, match=says):
        publishing.publish(release, bucket=bucket, prefix=prefix, endpoint_url=s3.endpoint_url)


SECRET = "pa55-for-nobody"


@pytest.mark.parametrize(
    ("endpoint_url", "environment"),
    [
        (f"http://somebody:{SECRET}@127.0.0.1:9", {}),
        (f"http://127.0.0.1:9/?key={SECRET}", {}),
        (f"somebody:{SECRET}@127.0.0.1", {}),
        ("http://127.0.0.1:9", {"AWS_SECRET_ACCESS_KEY": f"{SECRET}\n"}),
        ("http://127.0.0.1:9", {"AWS_SESSION_TOKEN": f"{SECRET}\n"}),
    ],
    ids=["password", "query", "no address", "line break in the key", "line break in the token"],
)
def test_a_secret_is_refused_where_it_would_show_and_not_repeated(
    s3: S3Server, release: Release, monkeypatch, endpoint_url: str, environment: dict[str, str]
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (fault,) = publishing.check(BUCKET, "tests", endpoint_url)
    assert SECRET not in fault.message
    with pytest.raises(RequestError, match="holds a") as refused:
        publishing.publish(release, bucket=BUCKET, endpoint_url=endpoint_url)
    told = "".join(traceback.format_exception(refused.value))
    assert SECRET not in told


@pytest.mark.parametrize("condition", ["IfNoneMatch", "IfMatch"])
def test_a_server_without_conditions_is_refused(s3: S3Server, prefix: str, monkeypatch, condition: str):
    """The header never leaves this machine, so that the real server does what one does that does not know it."""
    call = BaseClient._make_api_call

    def unconditional(client: Any, operation: str, arguments: dict[str, Any]) -> Any:
        return call(client, operation, {key: value for key, value in arguments.items() if key != condition})

    monkeypatch.setattr(BaseClient, "_make_api_call", unconditional)
    (fault,) = publishing.check(BUCKET, prefix, s3.endpoint_url)
    assert "ignores If-None-Match or If-Match" in fault.message
    assert s3.objects(prefix) == {}


def test_a_missing_bucket_is_said_and_not_made(s3: S3Server, release: Release, prefix: str):
    (fault,) = publishing.check("nowhere", prefix, s3.endpoint_url)
    assert "'nowhere' does not exist" in fault.message
    with pytest.raises(RequestError, match="'nowhere' does not exist"):
        publishing.publish(release, bucket="nowhere", prefix=prefix, endpoint_url=s3.endpoint_url)
    with pytest.raises(ClientError, match="404"):
        s3.client.head_bucket(Bucket="nowhere")


@pytest.mark.parametrize(
    ("bucket", "endpoint_url", "says"),
    [
        (BUCKET, "127.0.0.1:9000", "is not an address"),
        ("no such/bucket", "http://127.0.0.1:9", "3 to 63 of a-z"),
    ],
)
def test_an_address_that_cannot_be_one_is_said(s3: S3Server, bucket: str, endpoint_url: str, says: str):
    (fault,) = publishing.check(bucket, "tests", endpoint_url)
    assert says in fault.message


@pytest.mark.parametrize("bucket", [f"KEY:{SECRET}@releases", f"key:{SECRET}", "ab", "-releases", "releases\n"])
def test_what_is_no_bucket_is_refused_and_not_repeated(s3: S3Server, release: Release, bucket: str):
    (fault,) = publishing.check(bucket, "tests", s3.endpoint_url)
    assert "is no bucket" in fault.message and bucket not in fault.message
    with pytest.raises(RequestError, match="is no bucket") as refused:
        publishing.publish(release, bucket=bucket, endpoint_url=s3.endpoint_url)
    with pytest.raises(RequestError, match="is no bucket"):
        publishing.read_pointer(bucket, "tests", "capitals", "stable", s3.endpoint_url)
    assert SECRET not in fault.message + "".join(traceback.format_exception(refused.value))


def test_a_check_that_gets_no_answer_is_worth_another_try(s3: S3Server):
    with pytest.raises(TransientError, match="cannot be reached"):
        publishing.check(BUCKET, "tests", "http://127.0.0.1:9")


def test_no_connection_is_worth_another_try(s3: S3Server, release: Release):
    with pytest.raises(TransientError, match="cannot be reached"):
        publishing.publish(release, bucket=BUCKET, endpoint_url="http://127.0.0.1:9")


# A server on a disk of 60 MiB, which only this process has, and a release of 90.
FULL_SERVER = """
import json, os, subprocess, sys
from pathlib import Path
from infra.errors import TransientError
from tasks.publishing import s3
from tests.publishing import make_release
from tests.publishing.s3_server import BUCKET, s3_server

artifact, disk = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "none", disk], check=True)
with s3_server(Path(disk)) as server:
    os.environ.update(server.environment() | {"AWS_MAX_ATTEMPTS": "1"})
    release = make_release(Path(artifact), {"model.safetensors": os.urandom(90 * 2**20)})
    try:
        s3.publish(release, bucket=BUCKET, prefix="full", endpoint_url=server.endpoint_url)
    except TransientError as error:
        print(json.dumps([str(error), server.keys()]))
"""


@pytest.mark.slow
def test_a_full_server_is_worth_another_try_and_shows_no_release(tmp_path: Path):
    (tmp_path / "disk").mkdir()
    arguments = ["unshare", "-rm", sys.executable, "-c", FULL_SERVER, str(tmp_path / "artifact")]
    ended = subprocess.run([*arguments, str(tmp_path / "disk")], cwd=ROOT, capture_output=True, text=True)
    if "unshare" in ended.stderr or "mount" in ended.stderr:
        pytest.skip(f"no disk of its own for a process here: {ended.stderr}")
    says, keys = json.loads(ended.stdout)
    assert "disk is full" in says
    assert [key for key in keys if key.endswith("tunefleet.json")] == []


ANSWERS = {
    "busy": (503, "SlowDown", TransientError, "busy or failing"),
    "full": (507, "XMinioStorageFull", RequestError, "no space left"),
    "elsewhere": (400, "AuthorizationHeaderMalformed", RequestError, "is in region eu-west-3"),
    "no conditions": (501, "NotImplemented", RequestError, "did not accept"),
}


@pytest.mark.parametrize(("status", "code", "raised", "says"), ANSWERS.values(), ids=ANSWERS)
def test_what_a_server_answers_is_said(
    s3: S3Server, release: Release, status: int, code: str, raised: type[Exception], says: str
):
    """Answers that SeaweedFS cannot be brought to give: they come over HTTP, as S3 and MinIO word them."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f"<Error><Code>{code}</Code><Message>No.</Message><Region>eu-west-3</Region></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_PUT = do_HEAD = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            with pytest.raises(raised, match=says):
                publishing.publish(release, bucket=BUCKET, endpoint_url=f"http://127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()


def test_the_manifest_is_json_that_lists_the_objects(s3: S3Server, release: Release, prefix: str, publish):
    publish(release)
    manifest = json.loads(s3.objects(prefix)[home(prefix, release) + "tunefleet.json"])
    assert manifest["files"].keys() == PUBLISHED - {"tunefleet.json"}
