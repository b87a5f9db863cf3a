"""Checkpoints of a remote store, on a real S3 server: sent as they are written, fetched by another machine, or not."""

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from infra.errors import PreemptedError, TransientError
from infra.storage import Store
from tasks.training import kept
from tasks.training.checkpoints import HASHES, finish, is_whole, newest_whole, start
from tasks.training.kept import Kept, forget
from tests.publishing import files_under
from tests.publishing.s3_server import BUCKET, S3Server

LOG = logging.getLogger("kept")
KEY = "0123456789abcdef"
HERE = f"checkpoints/{KEY}/cpu-batch-4"

Machine = Callable[[str], Kept]


@pytest.fixture
def machine(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The job's checkpoints, seen from the machine of that name from now on."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    monkeypatch.setattr(kept, "LOOK_SECONDS", 0.05)

    def on(name: str) -> Kept:
        monkeypatch.setenv("TUNEFLEET_CACHE", str(tmp_path / name))
        return Kept(Store(f"s3://{BUCKET}/kept/{tmp_path.name}"), HERE, LOG)

    return on


def write(one: Kept, step: int, best: int | None = None) -> None:
    """A checkpoint, and the best weights that it refers to, as the stage writes them."""
    if best is not None and not (one.folder / f"best-{best}").exists():
        (start(one.folder, f"best-{best}") / "adapter_model.safetensors").write_bytes(b"best %d" % best)
        finish(one.folder, f"best-{best}")
    beside = start(one.folder, f"checkpoint-{step}")
    (beside / "deeper").mkdir()
    (beside / "deeper" / "optimizer.pt").write_bytes(b"%d" % step * 1000)
    (beside / "trainer_state.json").write_text(f'{{"best_global_step": {"null" if best is None else best}}}')
    finish(one.folder, f"checkpoint-{step}")


def in_store(one: Kept) -> set[str]:
    """Every file that is there just now, by its path below the job's folder."""
    found = one.store.fs.find(f"{one.store.root}/{one.there}", detail=True).values()
    return {info["name"].split(f"{one.there}/", 1)[1] for info in found if info["type"] == "file"}


def content(one: Kept, path: str) -> bytes:
    return bytes(one.store.fs.cat_file(f"{one.store.root}/{one.there}/{path}"))


def names_in(one: Kept) -> set[str]:
    return {path.split("/")[0] for path in in_store(one)}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def sent(one: Kept, step: int, best: int | None = None) -> None:
    with one.sent():
        write(one, step, best)
        until(lambda: f"checkpoint-{step}/{HASHES}" in in_store(one))


def test_another_machine_goes_on_from_the_newest(machine: Machine) -> None:
    first = machine("first")
    with first.sent():
        write(first, 4, best=2)
        until(lambda: f"checkpoint-4/{HASHES}" in in_store(first))
        assert names_in(first) == {"best-2", "checkpoint-4"}
        write(first, 8, best=2)
        until(lambda: names_in(first) == {"best-2", "checkpoint-8"})
        write(first, 12, best=10)
        until(lambda: names_in(first) == {"best-10", "checkpoint-12"})
    wanted = {path: data for path, data in files_under(first.folder).items() if path.split("/")[0] in names_in(first)}
    assert {path: content(first, path) for path in in_store(first)} == wanted
    assert not (first.folder / ".sending").exists()
    second = machine("second")
    second.fetch()
    assert {path: data for path, data in files_under(second.folder).items() if path != ".lock"} == wanted
    assert newest_whole(second.folder) == second.folder / "checkpoint-12"
    assert sorted(path.name for path in second.folder.iterdir()) == [".lock", "best-10", "checkpoint-12"]


DAMAGES: dict[str, Callable[[Kept, str], object]] = {
    "half an upload": lambda one, at: one.store.fs.rm_file(f"{at}/checkpoint-8/{HASHES}"),
    "a file is missing": lambda one, at: one.store.fs.rm_file(f"{at}/checkpoint-8/deeper/optimizer.pt"),
    "a file of another writer": lambda one, at: one.store.fs.pipe_file(f"{at}/checkpoint-8/trainer_state.json", b"{}"),
    "the best weights are missing": lambda one, at: one.store.fs.rm_file(f"{at}/best-6/adapter_model.safetensors"),
    "half of the best weights": lambda one, at: one.store.fs.rm_file(f"{at}/best-6/{HASHES}"),
    "a list that is none": lambda one, at: one.store.fs.pipe_file(f"{at}/checkpoint-8/{HASHES}", b"7"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_whole_is_passed_over(machine: Machine, damage: str) -> None:
    first = machine("first")
    write(first, 4, best=2)
    write(first, 8, best=6)
    at = f"{first.store.root}/{first.there}"
    for path in files_under(first.folder):
        first.store.fs.put_file(str(first.folder / path), f"{at}/{path}")
    DAMAGES[damage](first, at)
    second = machine("second")
    second.fetch()
    assert newest_whole(second.folder) == second.folder / "checkpoint-4"
    assert sorted(path.name for path in second.folder.iterdir()) == [".lock", "best-2", "checkpoint-4"]


def test_what_is_on_the_disk_wins_if_it_is_as_new_and_whole(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    sent(machine("first"), 8)
    second = machine("second")
    write(second, 4)
    write(second, 8)
    (second.folder / "checkpoint-8" / "mark").write_text("damaged")
    second.fetch()
    assert not (second.folder / "checkpoint-8" / "mark").exists() and is_whole(second.folder / "checkpoint-8")
    assert "going on from checkpoint-8, which another machine left in the store" in caplog.text
    caplog.clear()
    before = (second.folder / "checkpoint-8").stat().st_ino
    second.fetch()
    write(second, 12)
    second.fetch()
    assert (second.folder / "checkpoint-8").stat().st_ino == before and caplog.text == ""


def test_nothing_is_sent_that_is_damaged_on_the_disk(machine: Machine) -> None:
    """A training passes it over, and comes to that step again; what the store has meanwhile must stay."""
    one = machine("first")
    sent(one, 4)
    write(one, 8)
    (one.folder / "checkpoint-8" / HASHES).write_text("{}")
    one.fetch()
    assert not (one.folder / "checkpoint-8").exists()
    sent(one, 6)
    assert names_in(one) == {"checkpoint-6"}


def test_what_is_there_is_not_sent_again_and_half_of_it_is_completed(machine: Machine) -> None:
    one = machine("first")
    sent(one, 8, best=6)
    at = f"{one.store.root}/{one.there}"
    one.store.fs.rm_file(f"{at}/checkpoint-8/{HASHES}")
    one.store.fs.pipe_file(f"{at}/best-6/adapter_model.safetensors", b"marked")
    with one.sent():
        until(lambda: f"checkpoint-8/{HASHES}" in in_store(one))
    assert content(one, "best-6/adapter_model.safetensors") == b"marked"
    again = machine("second")
    write(again, 8)  # the same step, of a writer with other bytes: it replaces the whole
    own = json.loads((again.folder / "checkpoint-8" / HASHES).read_text())
    with again.sent():
        until(lambda: again.store.read_json(f"{again.there}/checkpoint-8/{HASHES}") == own)
    third = machine("third")
    third.fetch()
    assert newest_whole(third.folder) == third.folder / "checkpoint-8"


def test_a_writer_that_was_replaced_removes_nothing_newer(machine: Machine) -> None:
    sent(machine("new"), 12, best=10)
    stale = machine("stale")
    sent(stale, 8, best=6)
    assert names_in(stale) == {"best-6", "checkpoint-8", "best-10", "checkpoint-12"}
    third = machine("third")
    third.fetch()
    assert newest_whole(third.folder) == third.folder / "checkpoint-12"


@pytest.mark.parametrize(
    ("end", "goes_up"),
    [(None, False), (RuntimeError, False), (PreemptedError, True), (KeyboardInterrupt, True)],
)
def test_who_is_asked_to_stop_sends_what_was_just_saved(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, end: type[BaseException] | None, goes_up: bool
) -> None:
    monkeypatch.setattr(kept, "LOOK_SECONDS", 1000.0)  # nobody looks before the end
    one = machine("first")
    try:
        with one.sent():
            write(one, 4)
            if end:
                raise end
    except (RuntimeError, PreemptedError, KeyboardInterrupt):
        pass
    assert names_in(one) == ({"checkpoint-4"} if goes_up else set())


@pytest.mark.slow
def test_an_upload_is_given_up_within_a_file(machine: Machine, s3: S3Server) -> None:
    one = machine("first")
    beside = start(one.folder, "checkpoint-4")
    (beside / "a").write_text("")
    with (beside / "b").open("wb") as large:
        large.truncate(120 * 2**20)  # more than one part
    finish(one.folder, "checkpoint-4")
    one.store.write_json(f"{one.there}/checkpoint-4/{HASHES}", {"of": "another writer"})
    with one.sent():
        until(lambda: "checkpoint-4/a" in in_store(one))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("send")]
    assert in_store(one) == {"checkpoint-4/a"} and s3.uploads("kept") == []


@pytest.mark.slow
def test_what_the_training_drops_on_its_way_arrives(machine: Machine) -> None:
    one = machine("first")
    beside = start(one.folder, "checkpoint-4")
    (beside / "a").write_text("")
    with (beside / "b").open("wb") as large:
        large.truncate(100 * 2**20)
    (beside / "c").write_text("")
    finish(one.folder, "checkpoint-4")
    with one.sent():
        until(lambda: "checkpoint-4/a" in in_store(one))
        shutil.rmtree(one.folder / "checkpoint-4")
        until(lambda: f"checkpoint-4/{HASHES}" in in_store(one))


def test_a_store_that_refuses_ends_no_training(
    machine: Machine, s3: S3Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sent(machine("first"), 4)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.reader_access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.reader_secret_key)
    S3FileSystem.clear_instance_cache()  # it would go on with the credentials it had
    try:
        one = machine("first")
        with one.sent():
            write(one, 8)
            until(lambda: "checkpoint-8 is not in the store yet, and the training goes on: " in caplog.text)
        assert names_in(one) == {"checkpoint-4"}
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        S3FileSystem.clear_instance_cache()
        with pytest.raises(TransientError, match="cannot be read"):
            machine("second").fetch()
        forget(machine("first").store, f"checkpoints/{KEY}", LOG)
        assert "could not be removed, and stays until `tunefleet gc`" in caplog.text and not one.folder.exists()
    finally:
        S3FileSystem.clear_instance_cache()


def test_what_is_done_is_forgotten_everywhere(machine: Machine) -> None:
    one = machine("first")
    sent(one, 4, best=2)
    other = Kept(one.store, f"checkpoints/{KEY[::-1]}/cpu-batch-4", LOG)
    sent(other, 4)
    for _ in range(2):  # also if there is nothing
        forget(one.store, f"checkpoints/{KEY}", LOG)
        assert names_in(one) == set() and not one.folder.parent.exists()
    assert names_in(other) == {"checkpoint-4"} and other.folder.exists()


def test_a_local_store_needs_none_of_it(tmp_path: Path) -> None:
    one = Kept(Store(str(tmp_path)), HERE, LOG)
    assert one.folder == tmp_path / "work" / HERE
    one.fetch()
    with one.sent():
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("send")]
    assert list(tmp_path.iterdir()) == []
    write(one, 4)
    forget(one.store, f"checkpoints/{KEY}", LOG)
    assert list((tmp_path / "work" / "checkpoints").iterdir()) == []
