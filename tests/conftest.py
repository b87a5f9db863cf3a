"""Servers that several tests need, no sight of the user's own accounts, and property tests without a stopwatch."""

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from hypothesis import settings

from tests.operations.conftest import PrefectServer, started_server
from tests.publishing.hub_server import TOKEN, HubServer, hub_server
from tests.publishing.s3_server import S3Server, s3_server

# A shell's background job ignores SIGINT, and so would every command that a test starts and then interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# `make test` runs two of these side by side: each has one core, and its own places on the device.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix=f"{worker}-")
    atexit.register(shutil.rmtree, tempfile.tempdir, ignore_errors=True)

settings.register_profile("unhurried", deadline=None)  # the machine may be busy with something else
settings.load_profile("unhurried")


@pytest.fixture
def nobodys_accounts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No AWS or Hugging Face set-up but what a test makes."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "HF_", "HUGGING_FACE_", "HUGGINGFACE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))  # for child processes; this one has read it already
    for name, value in (
        ("HF_HOME", str(tmp_path / "hf")),
        ("HF_TOKEN_PATH", str(tmp_path / "hf" / "token")),
        ("HF_STORED_TOKENS_PATH", str(tmp_path / "hf" / "stored_tokens")),
        ("HF_HUB_OFFLINE", False),
    ):
        monkeypatch.setattr(constants, name, value)


@pytest.fixture(scope="session")
def s3_running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3(s3_running: S3Server, nobodys_accounts: None, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The session's S3 server, and credentials for it in the environment."""
    for name, value in s3_running.environment().items():
        monkeypatch.setenv(name, value)
    return s3_running


@pytest.fixture
def hub(nobodys_accounts: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """An empty Hub, and a token for it in the environment."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with hub_server() as server:
        yield server


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """Shared by all tests of the session: give pools, deployments and blocks names of your own."""
    with started_server(tmp_path_factory.mktemp("prefect")) as server:
        yield server


@pytest.fixture
def use_server(prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[PrefectServer]:
    """The session's server for code that runs in the test's own process; children inherit it, too."""
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    for name in list(os.environ):
        if name.startswith("PREFECT_"):
            monkeypatch.delenv(name)
    for name, value in prefect_server.env.items():
        if name.startswith("PREFECT_"):
            monkeypatch.setenv(name, value)
    updates = {PREFECT_API_URL: prefect_server.api, PREFECT_HOME: prefect_server.env["PREFECT_HOME"]}
    with temporary_settings(updates):
        yield prefect_server
