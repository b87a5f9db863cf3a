"""A small OpenAI-compatible server for tests, on 127.0.0.1: /v1/models and /v1/chat/completions, with state."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-test-0123456789abcdef"
NAME = "some-judge"


@dataclass
class ChatServer:
    """What the server answers, and what it was asked; tests change the one and look into the other."""

    address: str = ""  # up to and with /v1
    key: str | None = None  # that requests must bring
    models: list[str] | None = field(default_factory=lambda: [NAME, "other-judge"])  # None: it has no list
    says: Callable[[str], str | None] = lambda text: "A"  # from what the user says to the reply
    failing: list[tuple[int, dict[str, str]]] = field(default_factory=list)  # (status, headers) of the next answers
    body: bytes | None = None  # in place of every answer
    asked: list[dict[str, Any]] = field(default_factory=list)  # contents of the chat requests
    seen: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Authorization

    def answer(self, method: str, path: str, given: str | None, content: dict[str, Any]) -> tuple[int, Any]:
        if self.failing:
            status, _ = self.failing[0]
            return status, {"error": {"message": f"refused with {status}, not for {given}"}}
        if self.key and given != f"Bearer {self.key}":
            return 401, {"error": {"message": f"Incorrect API key provided: {given}"}}
        if (method, path) == ("GET", "/v1/models") and self.models is not None:
            return 200, {"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]}
        if (method, path) == ("POST", "/v1/chat/completions"):
            self.asked.append(content)
            if self.models and content["model"] not in self.models:
                return 404, {"error": {"message": f"The model {content['model']} does not exist"}}
            reply = {"role": "assistant", "content": self.says(content["messages"][0]["content"])}
            return 200, {"object": "chat.completion", "choices": [{"index": 0, "message": reply}]}
        return 404, {"error": {"message": "Not Found"}}


def answers_in(text: str) -> tuple[str, str]:
    """The two answers in a question to the judge."""
    first, second = (re.search(rf"<answer-{one} \w+>\n(.*)\n</answer-{one} ", text, re.DOTALL) for one in "AB")
    assert first and second
    return first[1], second[1]


@contextmanager
def chat_server() -> Iterator[ChatServer]:
    state, lock = ChatServer(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            content = json.loads(self.rfile.read(length)) if length else {}
            with lock:
                state.seen.append((self.command, self.path, self.headers.get("Authorization")))
                status, answer = state.answer(self.command, self.path, self.headers.get("Authorization"), content)
                headers = state.failing.pop(0)[1] if state.failing else {}
            body = json.dumps(answer).encode() if state.body is None else state.body
            self.send_response(status)
            for name, value in {**headers, "Content-Type": "application/json", "Content-Length": len(body)}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = _serve

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    state.address = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
