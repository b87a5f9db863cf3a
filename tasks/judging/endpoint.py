"""A judge behind an OpenAI-compatible server: POST {endpoint}/chat/completions, GET {endpoint}/models.

The key is read from the environment where it is used, and only here. It goes into one header; no address, job, record,
log line or error holds it, not even where a server repeats it in what it answers.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx

from infra.errors import RequestError, StageError, TransientError
from infra.launch import raise_if_interrupted

AT_ONCE = 4  # requests; a server of one GPU is not faster with many more, and a paid one refuses them
REPLY_TOKENS = 16  # room for "Answer A", not for an essay
ATTEMPTS = 4
PAUSE_SECONDS = 1.0  # before the second attempt; doubled before each further one
LONGEST_PAUSE_SECONDS = 30.0  # that a server may ask for
TIMEOUT = httpx.Timeout(120.0, connect=10.0)
_PASSING = {408, 409, 425, 429}  # and all from 500: may go through when tried again
_SHORTEST_SECRET = 8  # characters; servers that want no key are often given a word such as "none"
_SHOWN = 300  # characters of a server's answer in a message


class _NotThere(RequestError):
    """The server has nothing at that address."""


class Endpoint:
    """One model at one server; safe to share among threads."""

    def __init__(self, client: httpx.Client, url: str, key_variable: str, key: str | None):
        self._client, self._url, self._variable, self._key = client, url, key_variable, key

    def reply(self, name: str, text: str) -> str:
        """What the model says to `text`, greedily; empty if it says nothing."""
        asked = {
            "model": name,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": REPLY_TOKENS,
        }
        body = self._answer("POST", "/chat/completions", asked)
        try:
            return json.loads(body)["choices"][0]["message"]["content"] or ""
        except (ValueError, LookupError, TypeError):
            raise StageError(f"{self._url} does not answer as an OpenAI-compatible server: {body[:_SHOWN]!r}") from None

    def models(self) -> list[str] | None:
        """Names of the models that the server lists; None if it has no such list."""
        try:
            body = self._answer("GET", "/models")
        except _NotThere:
            return None
        try:
            return [model["id"] for model in json.loads(body)["data"]]
        except (ValueError, LookupError, TypeError):
            raise RequestError(f"{self._url}/models is not a list of models: {body[:_SHOWN]!r}") from None

    def _answer(self, method: str, path: str, content: Any = None) -> str:
        """The body of the server's answer, without the key; tries again what may pass by itself."""
        problem, pause = "", PAUSE_SECONDS
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(pause)
                pause *= 2
            try:
                response = self._client.request(method, self._url + path, json=content)
            except httpx.InvalidURL as error:
                raise RequestError(f"{self._url} is not an address: {error}") from None
            except httpx.HTTPError as error:
                # Not as the cause: the exception carries the request, and that the key.
                problem = f"cannot be reached: {self._without_key(str(error)) or type(error).__name__}"
                continue
            body = self._without_key(response.text)
            if response.is_success:
                return body
            problem = f"answered {response.status_code}: {body[:_SHOWN]}"
            if response.status_code not in _PASSING and response.status_code < 500:
                kind = _NotThere if response.status_code in (404, 405) else RequestError
                raise kind(f"{self._url}{path} {problem}. {self._advice(response.status_code)}")
            pause = max(pause, _asked_pause(response))
        raise TransientError(f"{self._url}{path} {problem} (tried {ATTEMPTS} times)")

    def _advice(self, status: int) -> str:
        if status in (401, 403):
            wrong = "is not one that the server takes" if self._key else "is not set, so no key was sent"
            return f"The environment variable {self._variable} {wrong}; set it, or name another in api_key."
        if status == 404:
            return "Look at evaluation.judge: is `endpoint` the address up to and with /v1, and `name` a model there?"
        return "Look at evaluation.judge: endpoint and name."

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key and len(self._key) >= _SHORTEST_SECRET else text


def _asked_pause(response: httpx.Response) -> float:
    """Seconds that a busy server asks to wait (Retry-After, as a number), within reason."""
    asked = response.headers.get("retry-after", "")
    return min(float(asked), LONGEST_PAUSE_SECONDS) if asked.isdecimal() else 0.0


@contextmanager
def connected(url: str, key_variable: str) -> Iterator[Endpoint]:
    """The server at `url`, with the key in the environment variable `key_variable` if there is one."""
    key = os.environ.get(key_variable, "").strip() or None
    if key and not (key.isascii() and key.isprintable()):
        raise RequestError(f"the environment variable {key_variable} holds characters that no key has; set it anew.")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(headers=headers, timeout=TIMEOUT) as client:
        yield Endpoint(client, url.rstrip("/"), key_variable, key)


def ask(texts: Sequence[str], *, url: str, name: str, key_variable: str) -> list[str]:
    """The model's replies to `texts`, in their order.

    RequestError for what a change of the recipe or the key mends, TransientError for what may pass by itself.
    """
    replies: list[str] = []
    with connected(url, key_variable) as endpoint, ThreadPoolExecutor(AT_ONCE) as pool:
        for reply in pool.map(lambda text: endpoint.reply(name, text), texts):
            raise_if_interrupted()  # whatever leaves the loop drops the questions that still wait
            replies.append(reply)
    return replies
