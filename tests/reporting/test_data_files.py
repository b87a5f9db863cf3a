"""Data beside the page: cut by what it weighs, written once, and kept for as long as a page may need it."""

import os
import time
from pathlib import Path

import pytest

from infra.files import Files
from infra.storage import Store
from tasks.reporting.dashboard import build_dashboard
from tasks.reporting.page import content
from tasks.reporting.page.data_files import KEPT, DataFiles
from tests.publishing.s3_server import BUCKET, S3Server
from tests.reporting.page_store import adapter, hostile, run_id, write_run


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "store"))
    write_run(store, run_id(18), [adapter("dates", run_id(18)), hostile(run_id(18))])
    return store


@pytest.fixture
def data(store: Store) -> Path:
    return Path(store.root, "dashboard", "data")


def build(store: Store, page: str = "") -> set[str]:
    """The names of the page's data files."""
    built = build_dashboard(store, f"{store.root}/dashboard/{page}".rstrip("/"), single_file=False)
    assert built.warnings == ()
    text = Path(built.page).read_text()
    return {name for name in names(Path(built.page).parent / "data") if name in text}


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def age(folder: Path) -> None:
    """Two hours."""
    for file in folder.iterdir():
        os.utime(file, (time.time() - 2 * KEPT,) * 2)


def another(store: Store, day: int) -> None:
    write_run(store, run_id(day), [adapter("mirror", run_id(day))])


def test_a_large_fleets_data_lies_beside_the_page(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build_dashboard(store).files == 0
    monkeypatch.setattr("tasks.reporting.dashboard.SMALL", 1000)
    monkeypatch.setattr(content, "PIECE", 1000)
    built = build_dashboard(store)
    there = names(Path(built.page).parent / "data")
    assert built.files == len(there) > 7 and sum(name.startswith("adapters-") for name in there) == 2


def test_what_no_page_needs_is_removed_after_an_hour(store: Store, data: Path) -> None:
    before = build(store)
    (data / "mine.js").write_text("")
    age(data)
    another(store, 19)
    after = build(store)
    assert before - after and names(data) == before | after | {"mine.js"}  # who has the old page open goes on with it
    age(data)
    assert build(store) == after
    assert names(data) == after | {"mine.js"}


def test_another_page_of_the_folder_keeps_its_files(store: Store, data: Path) -> None:
    other = build(store, "other.html")
    another(store, 19)
    age(data)
    mine = build(store)
    assert other - mine
    age(data)
    build(store)
    assert names(data) == other | mine
    Path(store.root, "dashboard", "other.html").unlink()
    age(data)
    build(store)
    assert names(data) == mine


def test_a_run_that_is_added_leaves_the_pieces_before_it_as_they_are(
    store: Store, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "PIECE", 20_000)
    for day in (19, 20, 21):
        another(store, day)
    before = {name for name in build(store) if name.startswith("adapters-")}
    written = {name: (data / name).stat().st_ino for name in before}
    another(store, 22)
    after = {name for name in build(store) if name.startswith("adapters-")}
    assert len(before) > 3 and len(before - after) <= 1
    assert all((data / name).stat().st_ino == written[name] for name in before & after)  # not written again
    cut = data / min(before & after)
    cut.write_bytes(cut.read_bytes()[:100])
    build(store)
    assert cut.stat().st_size > 100


def test_two_builds_may_remove_the_same_file(store: Store, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(store)
    another(store, 19)
    needed = build(store)
    age(data)
    folder = Files(f"{store.root}/dashboard")
    remove = folder.fs.rm_file

    def both(path: str) -> None:
        remove(path)
        remove(path)

    monkeypatch.setattr(folder.fs, "rm_file", both)
    DataFiles(folder).remove_old()
    assert names(data) == needed


def test_a_file_that_cannot_be_removed_is_told_and_the_page_is_there(store: Store, data: Path) -> None:
    stubborn = data / "fleet-0123456789ab.js"
    stubborn.mkdir(parents=True)
    age(data)
    built = build_dashboard(store, single_file=False)
    assert Path(built.page).exists() and len(built.warnings) == 1
    assert built.warnings[0].startswith(f"old files in {store.root}/dashboard/data are not removed: ")


def test_a_build_that_needs_an_old_file_makes_it_young(store: Store, data: Path) -> None:
    """Or another build, which does not know of it, would remove it before this one's page is there."""
    name, folder = "bench-0123456789ab.js", Files(f"{store.root}/dashboard")
    DataFiles(folder).add(name, b"some")
    age(data)
    DataFiles(folder).add(name, b"some")
    DataFiles(folder).remove_old()
    assert names(data) == {name}


def test_pieces_are_cut_by_size() -> None:
    texts = [(str(number), "x" * 300_000) for number in range(5)]
    assert [list(piece) for piece in content.pieces(texts)] == [["0", "1"], ["2", "3"], ["4"]]
    assert list(content.pieces([])) == []


@pytest.mark.parametrize("sign", ["字", '"', "\\", "\u2028"])
def test_sizes_are_those_that_are_written(sign: str) -> None:
    """A character of Chinese takes three bytes; a quote in JSON in a string takes more than itself."""
    texts = [(str(number), sign * 250_000) for number in range(3)]
    assert list(next(content.pieces(texts))) == ["0"]


def test_a_page_of_a_small_fleet_is_small_in_any_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {}
    for sign in ("a", "字", "<"):
        store = Store(str(tmp_path / str(ord(sign))))
        write_run(store, run_id(18), [adapter("dates", run_id(18), error=sign * 50_000)])
        monkeypatch.setattr("tasks.reporting.dashboard.SMALL", 120_000)
        sizes[sign] = build_dashboard(store).files
    assert sizes["a"] == 0 and sizes["字"] > 0 and sizes["<"] > 0


@pytest.mark.slow
def test_a_bucket_keeps_them_for_as_long(store: Store, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    place = f"s3://{BUCKET}/kept"
    build_dashboard(store, place, single_file=False)
    files = Files(place)
    before = {name: files.fs.info(f"{place}/data/{name}") for name in files.list_names("data")}
    another(store, 19)
    time.sleep(1.1)  # LastModified counts seconds
    again = build_dashboard(store, place, single_file=False)
    after = {name: files.fs.info(f"{place}/data/{name}") for name in files.list_names("data")}
    assert again.warnings == () and len(after) > again.files and set(before) < set(after)
    assert all(after[name]["LastModified"] > before[name]["LastModified"] for name in before)  # young, all of them
    assert {entry["ContentType"] for entry in after.values()} == {"text/javascript; charset=utf-8"}
    DataFiles(files).remove_old()
    assert len(files.list_names("data")) == len(after)
    DataFiles(files).remove_old(now=time.time() + 2 * KEPT)
    assert len(files.list_names("data")) == again.files
