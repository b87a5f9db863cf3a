"""The store's promises, on a folder and on a real S3 server, and what is said where they do not hold."""

import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from infra.redaction import without_secrets
from infra.storage import Store
from tasks.operations.doctor import store as checks
from tasks.operations.doctor.apart import apart
from tasks.operations.doctor.finding import Finding
from tasks.operations.doctor.store import exclusive_creation, look_at_store
from tests.operations.conftest import free_port
from tests.publishing.s3_server import BUCKET, S3Server


def statuses(findings: list[Finding]) -> dict[str, str]:
    return {one.check: one.status for one in findings}


@contextmanager
def silent_server() -> Iterator[str]:
    """Takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_folder_is_looked_at_and_left_as_it_was(tmp_path: Path) -> None:
    assert statuses(list(look_at_store(str(tmp_path / "new" / "store")))) == {"access": "ok", "claims": "ok"}
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "kept").mkdir()
    list(look_at_store(str(tmp_path / "kept")))
    assert (tmp_path / "kept").is_dir() and list((tmp_path / "kept").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (finding,) = look_at_store(str(tmp_path / "file" / "store"))
    assert (finding.check, finding.status) == ("access", "fault")
    assert "cannot be written" in finding.found


def test_a_store_that_overwrites_what_should_be_created_is_a_fault(tmp_path: Path) -> None:
    """As an S3 server does that does not know If-None-Match."""

    class Careless(Store):
        def create_json(self, path: str, value: object) -> bool:
            self.write_json(path, value)
            return True

    finding = exclusive_creation(Careless(str(tmp_path)))
    assert finding.status == "fault" and "a second time" in finding.found
    assert list(tmp_path.iterdir()) == []


def test_an_s3_store_with_its_clock(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    findings = list(look_at_store(f"s3://{BUCKET}/doctor"))
    assert statuses(findings) == {"access": "ok", "claims": "ok", "clock": "ok"}
    assert "If-None-Match" in findings[1].found
    assert s3.keys("doctor") == []
    now = time.time
    monkeypatch.setattr(checks.time, "time", lambda: now() + 90)
    finding = checks.clock(Store(f"s3://{BUCKET}/doctor"))
    assert finding.status == "warning" and re.search(r"(89|9[0-9]) s apart", finding.found)


@pytest.mark.parametrize("wrong", ["reader", "key", "secret", "bucket", "port"])
def test_an_s3_store_that_cannot_be_written_is_a_fault(
    wrong: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = "no-such-bucket" if wrong == "bucket" else BUCKET
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}" if wrong == "port" else s3.endpoint_url,
        **({"AWS_ACCESS_KEY_ID": s3.reader_access_key} if wrong == "reader" else {}),
        **({"AWS_SECRET_ACCESS_KEY": s3.reader_secret_key} if wrong == "reader" else {}),
        **({"AWS_ACCESS_KEY_ID": "nobodys-key"} if wrong == "key" else {}),
        **({"AWS_SECRET_ACCESS_KEY": "a-wrong-secret"} if wrong == "secret" else {}),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()  # it would go on with the credentials of before
    try:
        (finding,) = look_at_store(f"s3://{bucket}/doctor")
    finally:
        S3FileSystem.clear_instance_cache()
    assert (finding.check, finding.status) == ("access", "fault")
    assert ("does not exist" if wrong == "bucket" else "cannot be written") in finding.found
    assert "secret" not in without_secrets(finding.found)
    assert [one["Name"] for one in s3.client.list_buckets()["Buckets"]] == [BUCKET]


def test_a_server_that_never_answers_is_given_up(nobodys_accounts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with silent_server() as url:
        for name, value in {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}.items():
            monkeypatch.setenv(name, value)
        with apart("access", look_at_store, "s3://bucket/x", seconds=5, advice="look closer") as running:
            (finding,) = running.findings()
    assert (finding.status, finding.found) == ("fault", "no answer within 5 s")
