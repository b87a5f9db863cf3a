"""Who works on a key, on a folder and on a real S3 server: one at a time, and whoever is dead or paused is replaced."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from infra import claims
from infra.claims import Claim
from infra.settings import PROJECT
from infra.storage import ArtifactRef, Store
from tests.infra.stores import CLAIMS, FILES, KEY, STAGE, Maker, bare, fast, fill

SOON = 20.0  # seconds: well under CLAIM_SECONDS, so that it shows who waited for a claim to expire


# --- writers that die

CHILD = """
import os, signal, sys
from pathlib import Path
from infra import storage
from infra.storage import Store

root, work, dies_at = sys.argv[1:]
store, moved = Store(root), 0

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def counted(move):
    def moving(file, path):
        global moved
        moved += 1
        if dies_at == "second file" and moved == 2:
            die()
        move(file, path)
    return moving

def watched(write):
    def writing(path, value):
        if dies_at == "manifest" and path.endswith("manifest.json") or dies_at == "index" and path.startswith("index/"):
            die()
        return write(path, value)
    return writing

def make(claim):
    if dies_at == "making":
        die()
    return store.complete(Path(work), claim=claim, kind="adapters", name="capitals", manifest={"facts": {}})

store._move_in, store.write_json = counted(store._move_in), watched(store.write_json)
store.once("train", "0123456789abcdef", make, run_id="killed")
"""


@pytest.mark.parametrize(
    ("root", "dies_at"),
    [("folder", "making"), ("folder", "second file"), ("folder", "manifest"), ("folder", "index"), ("s3", "manifest")],
    indirect=["root"],
)
def test_a_killed_writer_leaves_nothing_to_believe_and_nobody_waits_for_it(
    root: str, store: Store, make: Maker, tmp_path: Path, dies_at: str
):
    work = fill(tmp_path / "work", FILES)
    killed = subprocess.run([sys.executable, "-c", CHILD, root, work, dies_at], cwd=PROJECT, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert bare(store).find(f"{store._path}/{CLAIMS}")
    assert bool(bare(store).find(f"{store._path}/adapters")) == (dies_at != "making")
    assert store.lookup(STAGE, KEY) is None
    started = time.monotonic()
    ref, cached = fast(store, make)
    assert time.monotonic() - started < SOON
    assert not cached
    # Killed before the index, it had completed the artifact: that stays, and so does its token.
    assert store.manifest(ref)["fencing_token"] == (1 if dies_at == "index" else 2)
    assert store.lookup(STAGE, KEY) == ref


# --- one writer at a time

RIVAL = """
import sys, time
from pathlib import Path
from infra.storage import Store

root, work, log = sys.argv[1:]
store = Store(root)

def make(claim):
    with open(log, "a") as stream:
        stream.write("made\\n")
    time.sleep(0.5)
    return store.complete(Path(work), claim=claim, kind="adapters", name="capitals", manifest={"facts": {}})

print("ready", flush=True)
sys.stdin.readline()
ref, cached = store.once("train", "0123456789abcdef", make, run_id=work, poll_seconds=0.05)
print(ref.digest, cached)
"""


def test_processes_that_want_the_same_make_it_once(root: str, tmp_path: Path):
    log = tmp_path / "log"
    command = [sys.executable, "-c", RIVAL, root]
    pipes: dict[str, Any] = {"cwd": PROJECT, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    rivals = [subprocess.Popen([*command, fill(tmp_path / name, FILES), log], **pipes) for name in ("one", "two")]
    for rival in rivals:
        assert rival.stdout.readline() == "ready\n"
    for rival in rivals:
        rival.stdin.write("\n")
        rival.stdin.flush()
    answers = [rival.communicate(timeout=60)[0].split() for rival in rivals]
    assert log.read_text() == "made\n"
    assert len({digest for digest, _ in answers}) == 1
    assert sorted(cached for _, cached in answers) == ["False", "True"]


def test_threads_that_want_the_same_make_it_once(store: Store, make: Maker):
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: fast(store, make), range(8)))
    assert make.calls == 1
    assert sorted(cached for _, cached in answers) == [False] + 7 * [True]


def test_what_was_finished_between_a_look_and_a_claim_is_not_made_again(
    store: Store, make: Maker, monkeypatch: pytest.MonkeyPatch
):
    take = store.claims.take

    def late(*asked: str) -> Claim | None:
        fast(Store(store.root), make)
        return take(*asked)

    monkeypatch.setattr(store.claims, "take", late)
    assert fast(store, make)[1] and make.calls == 1


def test_of_many_writers_one_creates_a_file(store: Store):
    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(lambda number: store.create("claims/a/b/1.json", b"%d" % number), range(8)))
    assert created.count(True) == 1
    assert bare(store).cat_file(f"{store._path}/claims/a/b/1.json") == b"%d" % created.index(True)


def test_a_failure_frees_the_key_at_once(store: Store, make: Maker):
    def fail(claim: Claim) -> ArtifactRef:
        raise RuntimeError("no luck")

    with pytest.raises(RuntimeError, match="no luck"):
        fast(store, fail)
    started = time.monotonic()
    ref, cached = fast(store, make)
    assert not cached and time.monotonic() - started < SOON
    assert store.manifest(ref)["fencing_token"] == 2


def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


HERE = claims.here()


@pytest.mark.parametrize(
    ("holder", "token"),
    [
        (lambda: {"host": HERE, "pid": os.getpid(), "until": time.time() + 60}, None),
        (lambda: {"host": HERE, "pid": os.getpid(), "until": time.time() - 1}, 8),  # alive, but not heard of
        (lambda: {"host": HERE, "pid": os.getpid(), "until": 0}, 8),  # gave it up
        (lambda: {"host": HERE, "pid": dead_pid(), "until": time.time() + 60}, 8),
        (lambda: {"host": HERE, "pid": 1, "until": time.time() + 60}, None),  # alive, perhaps another user's
        (lambda: {"host": "elsewhere", "pid": dead_pid(), "until": time.time() + 60}, None),  # who knows
        (lambda: {"host": "elsewhere", "pid": 1, "until": time.time() - 1}, 8),
        # another container of the same name
        (lambda: {"host": f"{socket.gethostname()} pid:[1]", "pid": dead_pid(), "until": time.time() + 60}, None),
    ],
)
def test_who_may_take_over(tmp_path: Path, holder: Callable[[], dict[str, Any]], token: int | None):
    store = Store(str(tmp_path))
    for number in (2, 7):  # the highest token counts, whatever the lower ones say
        store.write_json(f"{CLAIMS}/{number}.json", holder() if number == 7 else {"host": HERE, "pid": 1, "until": 9e9})
    claim = store.claims.take(STAGE, KEY, "run-1")
    assert (claim and claim.token) == token
