"""The store, on a folder and on a real S3 server: what is believed, what is made again, and by whom."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fsspec import AbstractFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from s3fs import S3FileSystem

from infra import storage
from infra.errors import IntegrityError, RequestError, StaleWriterError
from infra.hashing import digest_tree
from infra.settings import PROJECT
from infra.storage import MANIFEST, ArtifactRef, Claim, Store
from tests.publishing import files_under
from tests.publishing.s3_server import BUCKET, S3Server

STAGE, KEY = "train", "0123456789abcdef"
INDEX = f"index/{STAGE}/{KEY}.json"
CLAIMS = f"claims/{STAGE}/{KEY}"
FILES = {"adapter_model.safetensors": bytes(range(256)) * 40, "tokenizer/ü b#1.json": b"{}", "empty.txt": b""}
SOON = 20.0  # seconds: well under CLAIM_SECONDS, so that it shows who waited for a claim to expire


@dataclass
class Maker:
    """Completes `files` in `store`, and counts how often it is called."""

    store: Store
    work: Path
    files: dict[str, bytes]
    calls: int = 0

    def __call__(self, claim: Claim) -> ArtifactRef:
        self.calls += 1
        folder = fill(self.work / f"output-{claim.key}-{claim.token}", self.files)
        facts = {"facts": {"loss": 0.25, "by_step": {10: 1.0, 9: 2.0}}}
        return self.store.complete(folder, claim=claim, kind="adapters", name="capitals", manifest=facts)


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def fast(store: Store, make: Callable[[Claim], ArtifactRef], key: str = KEY) -> tuple[ArtifactRef, bool]:
    return store.once(STAGE, key, make, run_id="run-1", poll_seconds=0.02)


def bare(store: Store) -> AbstractFileSystem:
    """The store's files, for tests to meddle with. Paths start with the store's root."""
    return store.fs


def path_of(store: Store, ref: ArtifactRef, file: str) -> str:
    return f"{store._path}/{ref.uri.removeprefix(store.root + '/')}/{file}"


@pytest.fixture(params=["folder", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "folder":
        return str(tmp_path / "store")
    s3 = request.getfixturevalue("s3")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    monkeypatch.setenv("TUNEFLEET_CACHE", str(tmp_path / "cache"))
    return f"s3://{BUCKET}/stores/{tmp_path.name}"


@pytest.fixture
def store(root: str) -> Store:
    return Store(root)


@pytest.fixture
def make(store: Store, tmp_path: Path) -> Maker:
    return Maker(store, tmp_path / "made", FILES)


# --- what was completed


def test_what_was_completed_is_found_again(root: str, store: Store, make: Maker):
    ref, cached = fast(store, make)
    assert not cached
    assert ref.uri == f"{store.root}/adapters/capitals-{ref.digest[:12]}"
    again = Store(root)
    assert again.lookup(STAGE, KEY) == ref
    assert fast(again, make) == (ref, True)
    assert make.calls == 1
    folder = again.fetch(ref)
    assert {path: data for path, data in files_under(folder).items() if path != MANIFEST} == FILES


def test_the_manifest_says_what_and_by_whom(store: Store, make: Maker):
    ref, _ = fast(store, make)
    manifest = store.manifest(ref)
    assert {file["path"]: file["size"] for file in manifest["files"]} == {path: len(FILES[path]) for path in FILES}
    assert digest_tree({file["path"]: file["sha256"] for file in manifest["files"]}) == ref.digest == manifest["digest"]
    assert (manifest["stage"], manifest["run_id"], manifest["fencing_token"]) == (
        {"name": STAGE, "key": KEY},
        "run-1",
        1,
    )
    assert manifest["facts"] == {"loss": 0.25, "by_step": {"10": 1.0, "9": 2.0}}


def test_a_key_that_was_never_made_is_not_there(store: Store):
    assert store.lookup(STAGE, KEY) is None


def test_the_same_bytes_from_two_keys_share_a_folder(store: Store, make: Maker):
    one, _ = fast(store, make, "one")
    other, cached = fast(store, make, "other")
    assert one == other and not cached
    assert store.lookup(STAGE, "one") == store.lookup(STAGE, "other") == one
    assert len(bare(store).ls(f"{store._path}/adapters", detail=False)) == 1
    bare(store).rm_file(path_of(store, one, "empty.txt"))
    assert store.lookup(STAGE, "one") is store.lookup(STAGE, "other") is None


def test_an_output_cannot_hold_the_name_of_the_manifest(store: Store, make: Maker):
    make.files = {**FILES, MANIFEST: b"{}"}
    with pytest.raises(ValueError, match=r"holds a manifest\.json"):
        fast(store, make)
    assert store.lookup(STAGE, KEY) is None


NAMES = st.text("abü #%?*[]~.'\\", min_size=1, max_size=8).filter(lambda name: name.strip("."))


@given(
    files=st.dictionaries(
        st.tuples(st.sampled_from(["", "d/", "d/e/"]), NAMES).map("".join),
        st.binary(max_size=50),
        min_size=1,
        max_size=4,
    ),
    data=st.data(),
)
@settings(max_examples=20)
def test_any_files_come_back_and_any_other_byte_is_noticed(files: dict[str, bytes], data: st.DataObject):
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"{folder}/store")
        ref, _ = fast(store, Maker(store, Path(folder), files))
        assert {p: d for p, d in files_under(store.fetch(ref)).items() if p != MANIFEST} == files
        place = Path(ref.uri) / data.draw(st.sampled_from(sorted(files)))
        content = bytearray(place.read_bytes())
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        else:
            content += b"x"
        place.write_bytes(content)
        assert store.lookup(STAGE, KEY) is None


# --- what is not believed

DAMAGES: dict[str, tuple[str, Callable[[bytes], bytes | None], str | None]] = {
    # what happened: (file, its content afterwards, what `verify` says)
    "one bit altered": (
        "adapter_model.safetensors",
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        "adapter_model.safetensors has digest",
    ),
    "cut short": ("adapter_model.safetensors", lambda data: data[:1000], "adapter_model.safetensors has digest"),
    "emptied": ("adapter_model.safetensors", lambda data: b"", "adapter_model.safetensors has digest"),
    "deleted": ("tokenizer/ü b#1.json", lambda data: None, "tokenizer/ü b#1.json is missing"),
    "manifest deleted": (MANIFEST, lambda data: None, "has no manifest"),
    "manifest cut short": (MANIFEST, lambda data: data[: len(data) // 2], "has no manifest"),
    "manifest with other facts": (MANIFEST, lambda data: data.replace(b"0.25", b"0.05"), "manifest was altered"),
    "manifest of other files": (MANIFEST, lambda data: data.replace(b"empty", b"other"), "manifest was altered"),
    "manifest that is no manifest": (MANIFEST, lambda data: b"[]", "manifest was altered"),
    "index deleted": (INDEX, lambda data: None, None),
    "index cut short": (INDEX, lambda data: data[:20], None),
    "index of another digest": (
        INDEX,
        lambda data: json.dumps({**json.loads(data), "digest": "0" * 64}).encode(),
        None,
    ),
    "index without a path": (INDEX, lambda data: b'{"kind": "adapters"}', None),
    "index that is no index": (INDEX, lambda data: b"7", None),
    "index with a number for a digest": (
        INDEX,
        lambda data: json.dumps({**json.loads(data), "digest": 1}).encode(),
        None,
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed_and_made_good(store: Store, make: Maker, damage: str):
    ref, _ = fast(store, make)
    file, change, says = DAMAGES[damage]
    path = f"{store._path}/{INDEX}" if file == INDEX else path_of(store, ref, file)
    changed = change(bare(store).cat_file(path))
    if changed is None:
        bare(store).rm_file(path)
    else:
        bare(store).pipe_file(path, changed)
    if says:
        with pytest.raises(IntegrityError, match=says):
            store.verify(ref)
        with pytest.raises(IntegrityError, match=says):
            store.fetch(ref)
    assert store.lookup(STAGE, KEY) is None
    assert fast(store, make) == (ref, False)
    assert store.lookup(STAGE, KEY) == ref
    assert {path: data for path, data in files_under(store.fetch(ref)).items() if path != MANIFEST} == FILES
    assert make.calls == 2


def test_a_reference_of_another_store_is_refused(store: Store, make: Maker):
    ref, _ = fast(store, make)
    with pytest.raises(IntegrityError, match="is not in the store"):
        store.verify(ref.model_copy(update={"uri": "/elsewhere/adapters/capitals"}))


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
    claim = store._claim

    def late(*asked: str) -> Claim | None:
        fast(Store(store.root), make)
        return claim(*asked)

    monkeypatch.setattr(store, "_claim", late)
    assert fast(store, make)[1] and make.calls == 1


def test_of_many_writers_one_creates_a_file(store: Store):
    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(lambda number: store._create("claims/a/b/1.json", b"%d" % number), range(8)))
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


HERE = socket.gethostname()


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
    ],
)
def test_who_may_take_over(tmp_path: Path, holder: Callable[[], dict[str, Any]], token: int | None):
    store = Store(str(tmp_path))
    for number in (2, 7):  # the highest token counts, whatever the lower ones say
        store.write_json(f"{CLAIMS}/{number}.json", holder() if number == 7 else {"host": HERE, "pid": 1, "until": 9e9})
    claim = store._claim(STAGE, KEY, "run-1")
    assert (claim and claim.token) == token


# --- writers that were paused

PAUSED = """
import sys
from pathlib import Path
from infra import storage
from infra.errors import StaleWriterError
from infra.storage import Store

root, work, seconds = sys.argv[1:]
storage.CLAIM_SECONDS = float(seconds)
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
    monkeypatch.setattr(storage, "CLAIM_SECONDS", 1.2)
    store = Store(str(tmp_path / "store"))
    make = Maker(store, tmp_path, FILES)
    write, failures, begun = store._write, iter([ConnectionError("no route")]), threading.Event()

    def shaky(path: str, data: bytes) -> None:
        if path.startswith("claims/") and (failure := next(failures, None)):
            raise failure
        write(path, data)

    monkeypatch.setattr(store, "_write", shaky)

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
    write = store._write

    def no_claims(path: str, data: bytes) -> None:
        if path.startswith("claims/"):
            raise ConnectionError("no route")
        write(path, data)

    monkeypatch.setattr(store, "_write", no_claims)
    ref, cached = fast(store, Maker(store, tmp_path, FILES))
    assert not cached and Store(store.root).lookup(STAGE, KEY) == ref


def test_an_old_token_cannot_complete_over_another_key_of_the_same_bytes(store: Store, make: Maker):
    fast(store, make, "other")
    claim = store._claim(STAGE, KEY, "run-1")
    assert claim
    store.write_json(f"{CLAIMS}/2.json", {"host": "elsewhere", "pid": 1, "until": 0})
    with pytest.raises(StaleWriterError, match="another writer took over"):
        make(claim)
    assert store.lookup(STAGE, KEY) is None


# --- local copies of a remote store


@pytest.fixture
def remote(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Store, ArtifactRef]:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNEFLEET_CACHE", "cache")  # relative, on purpose
    store = Store(f"s3://{BUCKET}/stores/{tmp_path.name}")
    return store, fast(store, Maker(store, tmp_path, FILES))[0]


def test_a_copy_is_made_once_and_mended(remote: tuple[Store, ArtifactRef], tmp_path: Path):
    store, ref = remote
    folder = store.fetch(ref)
    assert folder.is_absolute() and folder.is_relative_to(tmp_path / "cache")
    before = (folder / "adapter_model.safetensors").stat().st_ino
    assert store.fetch(ref) == folder
    assert (folder / "adapter_model.safetensors").stat().st_ino == before
    (folder / "adapter_model.safetensors").write_bytes(b"altered")
    (folder / "left over").write_bytes(b"")
    assert files_under(store.fetch(ref)).keys() == {*FILES, MANIFEST}
    assert (folder / "adapter_model.safetensors").read_bytes() == FILES["adapter_model.safetensors"]


def test_many_fetch_at_once(remote: tuple[Store, ArtifactRef]):
    store, ref = remote
    with ThreadPoolExecutor(6) as pool:
        folders = list(pool.map(lambda _: (folder := store.fetch(ref), (folder / "empty.txt").stat().st_ino), range(6)))
    assert len(set(folders)) == 1  # one download, and nobody's files were replaced


# --- roots


@pytest.mark.parametrize("root", ["nonsense://bucket", "s3://", "file:///", "a-file"])
def test_a_root_that_cannot_be_one_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, root: str):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").touch()
    with pytest.raises(RequestError, match=r"store '.*Allowed: a folder, or s3://bucket/prefix"):
        Store(root)


def test_a_local_root_has_one_spelling(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    roots = ["store", "store/", "./store", "~/store", str(tmp_path / "store"), f"file://{tmp_path}/store"]
    assert {Store(root).root for root in roots} == {str(tmp_path / "store")}


def test_files_are_readable_as_the_umask_says(tmp_path: Path):
    before = os.umask(0o027)
    try:
        store = Store(str(tmp_path / "store"))
        ref, _ = fast(store, Maker(store, tmp_path, FILES))
    finally:
        os.umask(before)
    files = [Path(ref.uri) / MANIFEST, *(path for path in Path(store.root).rglob("*.json"))]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o640}
    assert not list(Path(store.root).rglob(".writing-*"))


@pytest.mark.parametrize("content", [None, b"", b'{"a": ', b"\xff", b'{"a": 1}'])
def test_json_that_is_cut_short_counts_as_missing(tmp_path: Path, content: bytes | None):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    assert Store(str(tmp_path)).read_json("a.json") == ({"a": 1} if content == b'{"a": 1}' else None)


def test_json_has_no_nan(tmp_path: Path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        Store(str(tmp_path)).write_json("a.json", {"loss": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_a_store_that_cannot_be_written_is_a_wrong_request(tmp_path: Path) -> None:
    Store(str(tmp_path / "fine")).check_writable()
    assert list((tmp_path / "fine").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="cannot be written"):
        Store("/proc/nowhere").check_writable()


def test_a_store_without_the_right_to_write_is_a_wrong_request(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.reader_access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.reader_secret_key)
    S3FileSystem.clear_instance_cache()  # it would go on with the credentials it had
    try:
        with pytest.raises(RequestError, match="cannot be written: PermissionError"):
            Store(f"s3://{BUCKET}/elsewhere").check_writable()
    finally:
        S3FileSystem.clear_instance_cache()
