"""Where things are kept, as the environment says."""

from pathlib import Path

import pytest

from infra.settings import cache_folder, default_store, scratch_folder
from infra.storage import Store


@pytest.mark.parametrize(
    ("value", "store"),
    [(None, ".tunefleet"), ("", ".tunefleet"), ("s3://bucket/a", "s3://bucket/a"), ("/data", "/data")],
)
def test_the_store(monkeypatch: pytest.MonkeyPatch, value: str | None, store: str):
    monkeypatch.delenv("TUNEFLEET_STORE", raising=False)
    if value is not None:
        monkeypatch.setenv("TUNEFLEET_STORE", value)
    assert default_store() == store


@pytest.mark.parametrize(
    ("value", "folder"),
    [(None, "HOME/.cache/tunefleet"), ("", "HOME/.cache/tunefleet"), ("~/c", "HOME/c"), ("c", "HERE/c"), ("/c", "/c")],
)
def test_the_cache_is_an_absolute_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str | None, folder: str
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TUNEFLEET_CACHE", raising=False)
    if value is not None:
        monkeypatch.setenv("TUNEFLEET_CACHE", value)
    wanted = folder.replace("HOME", str(tmp_path / "home")).replace("HERE", str(tmp_path))
    assert cache_folder() == Path(wanted)


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_scratch_lies_on_the_disk_of_a_local_store(tmp_path: Path, prefix: str):
    assert scratch_folder(Store(f"{prefix}{tmp_path}/store")) == tmp_path / "store" / "work"


def test_scratch_of_a_remote_store_lies_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TUNEFLEET_CACHE", str(tmp_path))
    assert scratch_folder(Store("memory://store")) == tmp_path / "work"
