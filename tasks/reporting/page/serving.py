"""The dashboard on this machine's own address, built anew when the results have changed.

Whoever asks for the page gets the newest. An open page asks every WATCH seconds whether it still is (`now.js`), and
says so if not. It is built in a folder of its own: a page that others build into the store asks nobody, and whoever
got that one would never hear of anything newer. A build that fails leaves the page as it was; it is tried again when
something changes, or after AGAIN seconds, since a bucket may only have been away.
"""

import functools
import http.server
import io
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

from infra.errors import RequestError
from infra.storage import Store
from tasks.reporting.dashboard import PAGE, Built, build_dashboard
from tasks.reporting.page.shell import data_file
from tasks.reporting.results import FOLDER, fill_in

ADDRESS = "127.0.0.1"
WATCHED = (FOLDER, "runs", "releases", "channels")
WATCH = 10.0  # seconds
AGAIN = 60.0  # seconds
NOW = "/now.js"


def serve_dashboard(store: Store, output: str | None, *, single_file: bool | None, port: int) -> None:
    """Serve until interrupted, which is how it ends; prints the address. What it builds goes, unless into `output`."""
    with tempfile.TemporaryDirectory(prefix="tunefleet-dashboard-") as folder:
        local = output or folder
        if "://" in local or local.endswith(".html"):
            raise RequestError(f"--serve with --output {local}: it has to be a local folder; leave --output out.")
        with server(store, local, single_file=single_file, port=port) as serving:
            try:
                print(f"http://{ADDRESS}:{serving.server_address[1]}/", flush=True)
                print("stop with Ctrl-C; the page says when there are new results", file=sys.stderr)
                serving.serve_forever()
            except KeyboardInterrupt:
                print("", file=sys.stderr)


def server(
    store: Store, folder: str, *, single_file: bool | None = None, port: int = 0, watch: float = WATCH
) -> http.server.ThreadingHTTPServer:
    """Listens already; the first build is done."""
    lock = threading.Lock()
    seen: list[Any] = []

    def build() -> Built:
        nonlocal seen
        seen = _fingerprint(store)  # also if what follows fails
        told: list[str] = []
        fill_in(store, told.append)
        seen = _fingerprint(store)  # what comes from here on is seen the next time
        return build_dashboard(store, folder, single_file=single_file, watch=watch, told=told)

    built = build()
    failed: float | None = None

    def newest() -> str:
        nonlocal built, failed
        with lock:
            try:
                if seen != _fingerprint(store) or (failed is not None and time.monotonic() > failed + AGAIN):
                    built, failed = build(), None
            except Exception as error:  # noqa: BLE001 - whatever came of the store, the page goes on
                failed = time.monotonic()
                print(f"the page stays as it was: {type(error).__name__}: {error}", file=sys.stderr)
            return built.made

    handler = functools.partial(_Handler, directory=str(Path(folder).absolute()), newest=newest)
    try:
        return http.server.ThreadingHTTPServer((ADDRESS, port), handler)
    except OSError as error:
        raise RequestError(f"--port {port}: {error.strerror}. Take another; 0 takes a free one.") from error


def _fingerprint(store: Store) -> list[tuple[str, Any]]:
    """Changes when a file of results, a run, a release or a channel comes, goes or is written anew."""
    found: list[tuple[str, Any]] = []
    for folder in WATCHED:
        try:
            entries = store.fs.find(f"{store.root}/{folder}", detail=True)
        except FileNotFoundError:
            continue
        for path, one in entries.items():
            found.append((path, (one["size"], str(one.get("mtime") or one.get("ETag") or one.get("LastModified")))))
    return sorted(found)


class _Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *args: Any, newest: Callable[[], str], **options: Any):
        self._newest = newest
        self.extensions_map = {**self.extensions_map, ".js": "text/javascript"}  # whatever the system thinks it is
        super().__init__(*args, **options)

    def send_head(self) -> Any:
        host = self.headers.get("Host", "").rsplit(":", 1)[0]
        if host not in (ADDRESS, "localhost"):  # another site's name that was pointed here
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST, "ask for 127.0.0.1 or localhost")
            return None
        asked = self.path.split("?")[0]
        if asked in ("/", f"/{PAGE}"):
            self._newest()
        return self._now() if asked == NOW else super().send_head()

    def _now(self) -> io.BytesIO:
        answer = data_file("now", json.dumps(self._newest()))
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/javascript; charset=utf-8")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        return io.BytesIO(answer)

    def list_directory(self, path: Any) -> None:
        self.send_error(HTTPStatus.NOT_FOUND)

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")  # scripts of data are for no other site's page
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads a line for each file."""
