"""A store on a local folder, and nobody's accounts."""

from pathlib import Path

import pytest

from infra.storage import Store


@pytest.fixture(autouse=True)
def isolated(nobodys_accounts: None) -> None:
    pass


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))
