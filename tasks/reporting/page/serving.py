"""The dashboard on this machine's own address, built anew when somebody asks for it and the results have changed."""

import functools
import http.server
import logging
import sys
import tempfile
import threading
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

from infra.errors import RequestError
from infra.storage import Store
from tasks.reporting.dashboard import PAGE, Built, build_dashboard
from tasks.reporting.results import FOLDER, fill_in

ADDRESS = "127.0.0.1"
WATCHED = (FOLDER, "runs", "releases", "channels")


def rebuild(store: Store, output: str | None, *, single_file: bool | None) -> Built:
    """The dashboard as the store stands now, with the runs that had left no results yet."""
    fill_in(store, logging.getLogger(__name__).warning)
    return build_dashboard(store, output, single_file=single_file)


def serve_dashboard(store: Store, output: str | None, *, single_file: bool | None, port: int) -> None:
    """Serve until interrupted; prints the address."""
    with tempfile.TemporaryDirectory(prefix="tunefleet-dashboard-") as folder:
        local = output or (f"{store.root}/dashboard" if store.is_local else folder)
        if "://" in local or local.endswith(".html"):
            raise RequestError(f"--serve with --output {local}: it has to be a local folder; leave --output out.")
        with server(store, local, single_file=single_file, port=port) as serving:
            print(f"http://{ADDRESS}:{serving.server_address[1]}/", flush=True)
            print("stop with Ctrl-C; reload the page to see new results", file=sys.stderr)
            serving.serve_forever()


def server(
    store: Store, folder: str, *, single_file: bool | None = None, port: int = 0
) -> http.server.ThreadingHTTPServer:
    """Listens already; the first build is done."""
    lock = threading.Lock()
    seen: list[Any] = []

    def freshen() -> None:
        with lock:
            now = _fingerprint(store)
            if seen != [now]:
                rebuild(store, folder, single_file=single_file)
                seen[:] = [_fingerprint(store)]

    freshen()
    handler = functools.partial(_Handler, directory=str(Path(folder).absolute()), freshen=freshen)
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
    def __init__(self, *args: Any, freshen: Callable[[], None], **options: Any):
        self._freshen = freshen
        super().__init__(*args, **options)

    def do_GET(self) -> None:
        host = self.headers.get("Host", "").rsplit(":", 1)[0]
        if host not in (ADDRESS, "localhost"):  # another site's name that was pointed here
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST, "ask for 127.0.0.1 or localhost")
            return
        if self.path.split("?")[0] in ("/", f"/{PAGE}"):
            self._freshen()
        super().do_GET()

    def list_directory(self, path: Any) -> None:
        self.send_error(HTTPStatus.NOT_FOUND)

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads a line for each file."""
