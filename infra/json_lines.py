"""A TCP connection between two machines of one job that carries JSON objects, one a line, and tells when it is gone.

Nothing is signed: whoever reaches the port can take a machine's place, as with torch's own meeting point. It belongs
into a cluster's inner network.
"""

import errno
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import Queue
from typing import Any, TypeAlias

POLL_SECONDS = 0.1
# A machine without power closes nothing: it is missed after 20 s of silence and three questions, 10 s apart.
KEEPALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}


class Line:
    """What arrives is put into `inbox` as (this line, object), and at the end (this line, None)."""

    def __init__(self, connected: socket.socket, inbox: "Inbox"):
        connected.settimeout(None)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):  # Linux
                connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._socket = connected
        self._inbox = inbox
        threading.Thread(target=self._listen, daemon=True, name="json-lines").start()

    def say(self, **message: Any) -> None:
        with suppress(OSError):  # if the other end is gone, the inbox says so
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _listen(self) -> None:
        # ValueError: no JSON, so a stranger
        with suppress(OSError, ValueError), self._socket.makefile("rb") as stream:
            for line in stream:
                message = json.loads(line)
                if not isinstance(message, dict):
                    break
                self._inbox.put((self, message))
        self._inbox.put((self, None))


Inbox: TypeAlias = "Queue[tuple[Line, dict[str, Any] | None]]"


@contextmanager
def door(port: int, *, until: float) -> Iterator[socket.socket]:
    """A socket that listens at `port` of all this machine's addresses; accept() raises TimeoutError every now and then.

    While somebody else has the port, waits, until time.monotonic() is `until`: TimeoutError then.
    """
    told = False
    while True:
        try:
            listening = socket.create_server(("", port))
            break
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            if time.monotonic() > until:
                raise TimeoutError(f"port {port} is in use") from error
            if not told:
                print(f"waiting for whoever has port {port}: as a rule another training on all machines", flush=True)
            told = True
            time.sleep(POLL_SECONDS)
    with listening:
        listening.settimeout(POLL_SECONDS)
        yield listening
