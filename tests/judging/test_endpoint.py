"""The protocol with a real server: what is sent, tried again and refused, and that the key stays unseen."""

import socket
import threading

import pytest

from infra import launch
from infra.errors import RequestError, StageError, TransientError
from tasks.judging import endpoint
from tasks.judging.endpoint import ATTEMPTS, ask
from tests.judging.chat_server import KEY, NAME, ChatServer


def asked(server: ChatServer, *texts: str, name: str = NAME) -> list[str]:
    return ask(texts or ("Which?",), url=server.address, name=name, key_variable="OPENAI_API_KEY")


def test_replies_come_in_the_order_of_the_questions(server: ChatServer):
    server.says = lambda text: f"reply to {text}"
    texts = [f"question {number}" for number in range(30)]
    assert asked(server, *texts) == [f"reply to {text}" for text in texts]


def test_what_is_sent(server: ChatServer):
    asked(server, "Which?")
    (content,) = server.asked
    assert content == {
        "model": NAME,
        "messages": [{"role": "user", "content": "Which?"}],
        "temperature": 0,
        "max_tokens": 16,
    }
    assert server.seen == [("POST", "/v1/chat/completions", None)]


@pytest.mark.parametrize("trailing", ["", "/"])
def test_an_address_may_end_in_a_slash(server: ChatServer, trailing: str):
    server.address += trailing
    assert asked(server) == ["A"]


def test_the_key_is_sent_as_it_is_in_the_environment(server: ChatServer, monkeypatch: pytest.MonkeyPatch):
    server.key = KEY
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    assert asked(server) == ["A"]
    assert server.seen[0][2] == f"Bearer {KEY}"


def test_no_reply_is_an_empty_one(server: ChatServer):
    server.says = lambda _: None
    assert asked(server) == [""]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(server: ChatServer, status: int):
    server.failing = [(status, {}), (status, {"Retry-After": "0"})]
    assert asked(server) == ["A"]
    assert len(server.seen) == 3


def test_a_server_that_stays_busy_is_given_up_for_now(server: ChatServer):
    server.failing = [(429, {})] * 10
    with pytest.raises(TransientError, match=f"/chat/completions answered 429: .*tried {ATTEMPTS} times"):
        asked(server)
    assert len(server.seen) == ATTEMPTS


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(endpoint, "PAUSE_SECONDS", 0.01)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(TransientError, match="cannot be reached"):
        ask(["Which?"], url=url, name=NAME, key_variable="OPENAI_API_KEY")


def test_one_failure_ends_all_questions(server: ChatServer):
    server.models = ["another"]
    with pytest.raises(RequestError):
        asked(server, *map(str, range(200)))
    assert len(server.seen) < 50


def test_an_interrupted_flow_asks_nothing_more(server: ChatServer):
    stop = threading.Event()

    def says(_: str) -> str:
        stop.set()
        return "A"

    server.says = says
    token = launch._interrupted.set(stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            asked(server, *map(str, range(200)))
    finally:
        launch._interrupted.reset(token)
    assert len(server.seen) < 50


def test_a_refused_key_says_what_to_do_and_not_what_it_is(server: ChatServer, monkeypatch: pytest.MonkeyPatch):
    server.key = "another key"
    with pytest.raises(RequestError, match="OPENAI_API_KEY is not set, so no key was sent; set it"):
        asked(server)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(RequestError, match="OPENAI_API_KEY is not one that the server takes; set it") as error:
        asked(server)
    assert "Bearer ***" in str(error.value)  # the server repeats it
    assert error.value.__cause__ is None
    assert len(server.seen) == 2


def test_a_key_that_no_header_takes_is_not_shown(server: ChatServer, monkeypatch: pytest.MonkeyPatch):
    for key in (f"{KEY}\nx", f"{KEY}é"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(RequestError, match="OPENAI_API_KEY holds characters that no key has") as error:
            asked(server)
        assert KEY not in str(error.value)
    assert not server.seen


@pytest.mark.parametrize("status", [400, 403, 404, 307])
def test_what_a_change_of_the_recipe_mends(server: ChatServer, status: int):
    server.failing = [(status, {})]
    with pytest.raises(RequestError, match=f"answered {status}: "):
        asked(server)
    assert len(server.seen) == 1


def test_a_name_that_the_server_does_not_have(server: ChatServer):
    with pytest.raises(RequestError, match="is `endpoint` the address up to and with /v1, and `name` a model"):
        asked(server, name="nobody")


@pytest.mark.parametrize("body", [b"<html>hello</html>", b"{}", b"[]", b'{"choices": []}', b'{"choices": null}'])
def test_a_server_that_speaks_something_else(server: ChatServer, body: bytes):
    server.body = body
    with pytest.raises(StageError, match="does not answer as an OpenAI-compatible server"):
        asked(server)
