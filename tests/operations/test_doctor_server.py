"""What is said of a Prefect server: real ones, open and with a password, and places where there is none."""

import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.operations.doctor.finding import Finding
from tasks.operations.doctor.server import look_at_server, no_server, version
from tests.operations.conftest import PrefectServer, free_port, started_server
from tests.operations.test_doctor_store import silent_server

PASSWORD = "admin:open-sesame"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """A server that wants a password, with nothing on it."""
    folder = tmp_path_factory.mktemp("guarded")
    asked = {"PREFECT_SERVER_API_AUTH_STRING": PASSWORD, "PREFECT_API_AUTH_STRING": PASSWORD}
    with started_server(folder, **asked) as server:
        yield server


def examined(monkeypatch: pytest.MonkeyPatch, url: str | None, **settings: str) -> dict[str, Finding]:
    """By check: what is found with these settings and no others."""
    from prefect.context import SettingsContext
    from prefect.settings import Profile, Settings

    for name in [name for name in os.environ if name.startswith("PREFECT_") and name != "PREFECT_HOME"]:
        monkeypatch.delenv(name)
    for name, value in {**settings, **({"PREFECT_API_URL": url} if url else {})}.items():
        monkeypatch.setenv(name, value)
    with SettingsContext(profile=Profile(name="doctor", settings={}), settings=Settings()):  # read from it anew
        return {one.check: one for one in look_at_server()}


@pytest.mark.slow
def test_an_open_server_on_sqlite(prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    found = examined(monkeypatch, prefect_server.api)
    assert found["server"].status == "ok" and prefect_server.api in found["server"].found
    assert found["access"].status == "absent", "an address of this machine does not say who else reaches it"
    assert "no password: fine only if it listens on 127.0.0.1" in found["access"].found
    assert "PREFECT_SERVER_API_AUTH_STRING" in found["access"].advice
    assert found["database"].status == "warning" and found["database"].found.startswith("SQLite")
    elsewhere = examined(monkeypatch, prefect_server.api.replace("127.0.0.1", "0.0.0.0"))
    assert elsewhere["access"].status == "warning"
    assert "PREFECT_SERVER_API_AUTH_STRING" in elsewhere["access"].advice


@pytest.mark.slow
def test_a_server_with_a_password(guarded: PrefectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    found = examined(monkeypatch, guarded.api, PREFECT_API_AUTH_STRING=PASSWORD)
    assert {found[check].status for check in ("server", "access")} == {"ok"}
    assert found["access"].found == "asks for a password"
    assert found["deployments"].status == "absent"
    for wrong in ({}, {"PREFECT_API_AUTH_STRING": "admin:wrong"}):
        refused = examined(monkeypatch, guarded.api, **wrong)
        assert refused.keys() == {"server"} and refused["server"].status == "fault"
        assert "401" in refused["server"].found and "PREFECT_API_AUTH_STRING" in refused["server"].advice


def test_a_port_where_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    found = examined(monkeypatch, f"http://127.0.0.1:{free_port()}/api")
    assert found.keys() == {"server"} and found["server"].status == "fault"
    assert "nobody answers" in found["server"].found


@pytest.mark.slow
def test_a_server_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with silent_server() as url:
        found = examined(monkeypatch, f"{url}/api")
    assert found.keys() == {"server"} and found["server"].status == "fault"
    assert "did not answer within 5 s" in found["server"].found


@pytest.mark.parametrize("status", [200, 404, 500])
def test_a_server_of_something_else(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        found = examined(monkeypatch, f"http://127.0.0.1:{other.server_port}/api")
        other.shutdown()
    assert found.keys() == {"server"} and found["server"].status == "fault"
    assert ("fails" if status == 500 else "is no Prefect API") in found["server"].found


def test_without_a_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    off = examined(monkeypatch, None, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE="false")
    on = examined(monkeypatch, None, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE="true")
    assert off == {"server": no_server(False)} and off["server"].status == "fault"
    assert on == {"server": no_server(True)} and on["server"].status == "absent"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("server", "status"),
    [("3.9.0", "ok"), ("3.9.5", "ok"), ("3.10.0", "ok"), ("3.8.8", "warning"), ("2.20.1", "fault"), ("4.0", "fault")],
)
def test_versions_of_server_and_client(server: str, status: str) -> None:
    assert version(server, "3.9.1", "http://host/api").status == status
