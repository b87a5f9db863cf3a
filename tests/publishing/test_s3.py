"""Publishing to S3, against a real server."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore.client import BaseClient
from botocore.exceptions import ClientError

from infra.errors import IntegrityError, RequestError, TransientError
from tasks.publishing import s3 as publishing
from tasks.publishing.release import Published, Release, contents
from tests.publishing import PUBLISHED, ROOT, make_release
from tests.publishing.s3_server import BUCKET, S3Server

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
    return f"{prefix}/capitals/adapter-{release.digest[:12]}/"


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
    monkeypatch.setattr(publishing, "_READ_BACK", read_back)  # bytes; what is larger is judged by what the server says
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
    monkeypatch.setattr(publishing, "_ONE_PUT", 5 * 2**20)
    release = make_release(tmp_path / "large", {"model.safetensors": bytes(range(256)) * 4096 * 11})
    publish(release)
    key = home(prefix, release) + "model.safetensors"
    assert s3.client.head_object(Bucket=BUCKET, Key=key, ChecksumMode="ENABLED")["ChecksumSHA256"].endswith("-3")
    assert s3.objects(prefix) == whole(prefix, release)
    puts.clear()
    publish(release)
    assert puts == []


def test_somebody_who_was_faster_has_done_the_work(s3: S3Server, release: Release, prefix: str, publish, monkeypatch):
    put_manifest = publishing._put_manifest
    answers: list[bool] = []

    def after_somebody_else(*arguments: Any) -> bool:
        answers.extend([put_manifest(*arguments), put_manifest(*arguments)])
        return answers[-1]

    monkeypatch.setattr(publishing, "_put_manifest", after_somebody_else)
    publish(release)
    assert answers == [True, False]
    assert s3.objects(prefix) == whole(prefix, release)


def test_a_standing_release_keeps_its_card(s3: S3Server, release: Release, tmp_path: Path, prefix: str, publish):
    publish(release)
    publish(make_release(tmp_path / "artifact", card=release.card + "\nReworded.\n", manifest={"later": True}))
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
    upload = publishing._upload

    def change_then_upload(client: Any, bucket: str, key: str, blob: Any) -> None:
        release.folder.joinpath("adapter_config.json").write_bytes(b'{"r": 9}\n')
        upload(client, bucket, key, blob)

    monkeypatch.setattr(publishing, "_upload", change_then_upload)
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
        (BUCKET, "http://127.0.0.1:9", "cannot be reached"),
        (BUCKET, "127.0.0.1:9000", "is not an address"),
        ("no such/bucket", "http://127.0.0.1:9", "no such/bucket"),
    ],
)
def test_a_server_that_is_not_there_is_said(s3: S3Server, bucket: str, endpoint_url: str, says: str):
    (fault,) = publishing.check(bucket, "tests", endpoint_url)
    assert says in fault.message


def test_no_connection_is_worth_another_try(s3: S3Server, release: Release):
    with pytest.raises(TransientError, match="cannot be reached"):
        publishing.publish(release, bucket=BUCKET, endpoint_url="http://127.0.0.1:9")


def test_a_busy_server_is_worth_another_try(s3: S3Server, release: Release):
    class Busy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
            self.send_response(503)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            with pytest.raises(TransientError, match="SlowDown"):
                publishing.publish(release, bucket=BUCKET, endpoint_url=f"http://127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()


def test_the_manifest_is_json_that_lists_the_objects(s3: S3Server, release: Release, prefix: str, publish):
    publish(release)
    manifest = json.loads(s3.objects(prefix)[home(prefix, release) + "tunefleet.json"])
    assert manifest["files"].keys() == PUBLISHED - {"tunefleet.json"}
