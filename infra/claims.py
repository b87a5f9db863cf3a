"""Claims: who works on a piece of work just now.

    claims/<stage>/<key>/<token>.json      who works on a key; the highest token is the holder

A claim is a file created exclusively; taking over an expired one means creating the next number, so the number
is a fencing token: a writer that was paused and declared dead finds a higher one and cannot complete anything.
"""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.errors import StaleWriterError
from infra.files import Files
from infra.hashing import SHORT

CLAIM_SECONDS = 60.0  # a claim that was not renewed for so long may be taken over

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Claim:
    """The right to complete one stage key, as long as no higher token exists."""

    stage: str
    key: str
    token: int
    run_id: str


class Claims:
    """The claims of one store."""

    def __init__(self, files: Files):
        self._files = files

    def holder(self, stage: str, key: str) -> dict[str, Any] | None:
        """Who works on `key` just now: {"run_id", "host", "pid", "until"}; None if nobody does."""
        return self._alive(stage, key, self._tokens(stage, key))

    def sign(self, stage: str, key: str) -> Any:
        """Something that changes for as long as somebody works on `key`, whatever the clocks say."""
        tokens = self._tokens(stage, key)
        return tokens[-1:], self._files.read_json(_claim_path(stage, key, tokens[-1])) if tokens else None

    @contextmanager
    def held(self, stage: str, key: str, *, run_id: str) -> Iterator[bool]:
        """Keep others from working on `key` for as long as this lasts; False if somebody is at it already."""
        claim = self.take(stage, key, run_id)
        if claim is None:
            yield False
        else:
            with self.renewed(claim):
                yield True

    def take(self, stage: str, key: str, run_id: str) -> Claim | None:
        """The next token of `key`, or None while a living holder has it."""
        tokens = self._tokens(stage, key)
        if self._alive(stage, key, tokens):
            return None
        claim = Claim(stage, key, (tokens or [0])[-1] + 1, run_id)
        first = _holder(claim, time.time() + CLAIM_SECONDS)
        return claim if self._files.create(_claim_path(stage, key, claim.token), first) else None

    @contextmanager
    def renewed(self, claim: Claim) -> Iterator[None]:
        """Keep `claim` alive in the background, and give it up at the end."""
        stop = threading.Event()

        def renew() -> None:
            while not stop.wait(CLAIM_SECONDS / 4):
                self.hold(claim, until=time.time() + CLAIM_SECONDS)

        thread = threading.Thread(target=renew, daemon=True, name=f"renew-{claim.stage}")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self.hold(claim, until=0)

    def hold(self, claim: Claim, *, until: float) -> None:
        """Say how long `claim` holds. A failure is only logged: the next turn, or the claim's end, puts it right."""
        try:
            self._files.write(_claim_path(claim.stage, claim.key, claim.token), _holder(claim, until))
        except Exception as error:  # noqa: BLE001 - whatever the store's client raises; the work itself goes on
            log.warning("%s %s: the claim could not be renewed: %s", claim.stage, claim.key[:SHORT], error)

    def check(self, claim: Claim) -> None:
        """StaleWriterError if another writer has taken the key of `claim` over."""
        if self._tokens(claim.stage, claim.key)[-1:] != [claim.token]:
            raise StaleWriterError(
                f"{claim.stage} {claim.key[:SHORT]}: run {claim.run_id} holds token {claim.token}, but another "
                "writer took over while this one was not heard of. Its result is dropped; run again to use the other."
            )

    def _tokens(self, stage: str, key: str) -> list[int]:
        names = self._files.list_names(f"claims/{stage}/{key}")
        return sorted(int(stem) for name in names if (stem := Path(name).stem).isdigit())

    def _alive(self, stage: str, key: str, tokens: list[int]) -> dict[str, Any] | None:
        holder = self._files.read_json(_claim_path(stage, key, tokens[-1])) if tokens else None
        return None if holder is None or _is_over(holder) else dict(holder)


def _claim_path(stage: str, key: str, token: int) -> str:
    return f"claims/{stage}/{key}/{token}.json"


def _holder(claim: Claim, until: float) -> bytes:
    facts = {"run_id": claim.run_id, "host": here(), "pid": os.getpid(), "until": until}
    return json.dumps(facts).encode()


def here() -> str:
    """Where a process id means something: containers may share a host's name, but not its process ids."""
    with suppress(OSError):
        return f"{socket.gethostname()} {Path('/proc/self/ns/pid').readlink()}"
    return socket.gethostname()


def _is_over(holder: Mapping[str, Any]) -> bool:
    """Given up, not renewed in time, or held by a process of this machine that is gone."""
    if time.time() > holder["until"]:
        return True
    if holder["host"] != here():
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # alive, another user's
        return False
    return False
