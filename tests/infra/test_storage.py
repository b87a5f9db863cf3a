"""The store, on a folder and on a real S3 server: what is believed, and what is made again."""

import json
import os
import stat
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from s3fs import S3FileSystem

from infra.errors import IntegrityError, RequestError
from infra.hashing import digest_tree
from infra.storage import MANIFEST, ArtifactRef, Store
from tests.infra.stores import FILES, KEY, STAGE, Maker, bare, fast, path_of
from tests.publishing import files_under
from tests.publishing.s3_server import BUCKET, S3Server

INDEX = f"index/{STAGE}/{KEY}.json"


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
