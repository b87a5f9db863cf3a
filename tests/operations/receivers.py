"""Receivers of notices: an HTTP server and an SMTP server on 127.0.0.1 that keep what they are sent."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any


@contextmanager
def http_receiver(status: int = 200, hang: threading.Event | None = None) -> Iterator[tuple[str, list[Any]]]:
    """Its URL, and the JSON bodies that were sent there; with `hang` it answers nobody until that is set."""
    received: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            if hang:
                hang.wait(60)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with _serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as port:
        yield f"http://127.0.0.1:{port}", received


@contextmanager
def smtp_receiver() -> Iterator[tuple[int, list[str]]]:
    """Its port, and the mails it took, head and body. As much of RFC 5321 as a client needs to hand over a mail."""
    received: list[str] = []

    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            self.say("220 test")
            for line in iter(self.rfile.readline, b""):
                word = line[:4].upper().strip()
                if word == b"DATA":
                    self.say("354 go on")
                    received.append(b"".join(iter(self.rfile.readline, b".\r\n")).decode())
                self.say("221 bye" if word == b"QUIT" else "250 ok")
                if word == b"QUIT":
                    return

        def say(self, text: str) -> None:
            self.wfile.write(f"{text}\r\n".encode())

    with _serving(ThreadingTCPServer(("127.0.0.1", 0), Handler)) as port:
        yield port, received


@contextmanager
def _serving(server: Any) -> Iterator[int]:
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
