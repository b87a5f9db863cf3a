"""A Prefect server for tests: a real one, with a database of its own. tests/conftest.py starts one for all."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.settings import PROJECT

PREFECT = [sys.executable, "-m", "prefect"]


@dataclass(frozen=True)
class PrefectServer:
    """`env` is the whole environment of a process that talks to this server, and to no other."""

    api: str
    env: dict[str, str]
    folder: Path

    def prefect(self, *words: str, cwd: Path = PROJECT) -> str:
        """What `prefect ...` printed; fails the test if it failed."""
        done = subprocess.run([*PREFECT, *words], env=self.env, cwd=cwd, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, f"prefect {' '.join(words)}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@contextmanager
def started_server(folder: Path, **settings: str) -> Iterator[PrefectServer]:
    """A server on a free port for as long as the block lasts; `settings` are more PREFECT_... of its environment."""
    port = free_port()
    server = PrefectServer(
        api=f"http://127.0.0.1:{port}/api",
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
            "PREFECT_HOME": str(folder / "home"),
            "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_CLI_COLORS": "false",
            **settings,
        },
        folder=folder,
    )
    with running(server, "server", "start", "--host", "127.0.0.1", "--port", str(port), log="server.log"):
        wait_for(f"{server.api}/health", 180)
        yield server


@contextmanager
def running(server: PrefectServer, *words: str, log: str, cwd: Path = PROJECT) -> Iterator[subprocess.Popen[bytes]]:
    """`prefect ...` for as long as the block lasts, in a process group of its own."""
    with (server.folder / log).open("wb") as stream:
        process = subprocess.Popen(
            [*PREFECT, *words], env=server.env, cwd=cwd, stdout=stream, stderr=stream, start_new_session=True
        )
        try:
            yield process
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                if process.poll() is None:
                    os.killpg(process.pid, number)
                    try:
                        process.wait(20)
                    except subprocess.TimeoutExpired:
                        continue


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(url: str, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"{url} did not answer within {seconds} s")
