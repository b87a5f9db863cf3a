"""An empty store, on a folder and on a real S3 server."""

from pathlib import Path

import pytest

from infra.storage import Store
from tests.infra.stores import FILES, Maker
from tests.publishing.s3_server import BUCKET


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
