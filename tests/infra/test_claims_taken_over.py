"""Writers that are slow, paused or stale: taken over if they are not heard of, and then unable to complete anything."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra import claims
from infra.claims import Claim
from infra.errors import StaleWriterError
from infra.settings import PROJECT
from infra.storage import MANIFEST, ArtifactRef, Store
from tests.infra.stores import CLAIMS, FILES, KEY, STAGE, Maker, bare, fast, fill, path_of

PAUSED = """
import sys
from pathlib import Path
from infra import claims
from infra.errors import StaleWriterError
from infra.storage import Store

root, work, seconds = sys.argv[1:]
claims.CLAIM_SECONDS = float(seconds)
store = Store(root)

def make(claim):
    print("making", flush=True)
    sys.stdin.readline()
    return store.complete(Path(work), claim=claim, kind="adapters", name="capitals", manifest={"facts": {}})

try:
    store.once("train", "0123456789abcdef", make, run_id="paused")
    print("completed", flush=True)
except StaleWriterError as error:
    print(error, flush=True)
"""


@pytest.fixture
def paused(root: str, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of making the key, stopped, with a claim that will expire soon."""
    work = fill(tmp_path / "paused", {"adapter_model.safetensors": b"of the one that was paused"})
    command = [sys.executable, "-c", PAUSED, root, work, "1"]
    with subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout and process.stdout.readline() == "making\n"
            process.send_signal(signal.SIGSTOP)
            yield process
        finally:
            process.kill()


def wake(process: subprocess.Popen[str]) -> str:
    """Let it go on to the end; what it then says."""
    assert process.stdin and process.stdout
    process.send_signal(signal.SIGCONT)
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline()


@pytest.mark.parametrize(
    ("root", "wakes"),
    [("folder", "while the other works"), ("folder", "after the other"), ("s3", "while the other works")],
    indirect=["root"],
)
def test_a_paused_writer_is_taken_over_and_cannot_complete(
    store: Store, make: Maker, paused: subprocess.Popen[str], wakes: str
):
    said: list[str] = []

    def taking_over(claim: Claim) -> ArtifactRef:
        assert claim.token == 2
        if wakes == "while the other works":
            said.append(wake(paused))
            assert store.lookup(STAGE, KEY) is None
        return make(claim)

    ref, cached = fast(store, taking_over)
    if wakes == "after the other":
        said.append(wake(paused))
    assert "run paused holds token 1, but another writer took over" in said[0]
    assert not cached and store.lookup(STAGE, KEY) == ref
    manifests = [path for path in bare(store).find(f"{store._path}/adapters") if path.endswith(MANIFEST)]
    assert manifests == [path_of(store, ref, MANIFEST)]


@pytest.mark.parametrize("root", ["folder"], indirect=True)
def test_a_writer_that_only_looks_late_is_not_stale(store: Store, paused: subprocess.Popen[str]):
    time.sleep(1.1)  # expired, but nobody took over
    assert wake(paused) == "completed\n"
    assert store.lookup(STAGE, KEY) is not None


def test_long_work_is_not_taken_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """The claim is renewed in the background, and one renewal that fails does not end that."""
    monkeypatch.setattr(claims, "CLAIM_SECONDS", 1.2)
    store = Store(str(tmp_path / "store"))
    make = Maker(store, tmp_path, FILES)
    write, failures, begun = store.write, iter([ConnectionError("no route")]), threading.Event()

    def shaky(path: str, data: bytes) -> None:
        if path.startswith("claims/") and (failure := next(failures, None)):
            raise failure
        write(path, data)

    monkeypatch.setattr(store, "write", shaky)

    def slow(claim: Claim) -> ArtifactRef:
        begun.set()
        time.sleep(2)
        return make(claim)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(fast, store, slow)
        assert begun.wait(5)
        second = pool.submit(fast, Store(store.root), make)
        assert (first.result()[1], second.result()[1]) == (False, True)
    assert make.calls == 1
    assert "the claim could not be renewed: no route" in caplog.text


def test_a_result_stands_though_its_claim_cannot_be_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    store = Store(str(tmp_path / "store"))
    write = store.write

    def no_claims(path: str, data: bytes) -> None:
        if path.startswith("claims/"):
            raise ConnectionError("no route")
        write(path, data)

    monkeypatch.setattr(store, "write", no_claims)
    ref, cached = fast(store, Maker(store, tmp_path, FILES))
    assert not cached and Store(store.root).lookup(STAGE, KEY) == ref


def test_an_old_token_cannot_complete_over_another_key_of_the_same_bytes(store: Store, make: Maker):
    fast(store, make, "other")
    claim = store.claims.take(STAGE, KEY, "run-1")
    assert claim
    store.write_json(f"{CLAIMS}/2.json", {"host": "elsewhere", "pid": 1, "until": 0})
    with pytest.raises(StaleWriterError, match="another writer took over"):
        make(claim)
    assert store.lookup(STAGE, KEY) is None
