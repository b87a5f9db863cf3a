"""The tiny base model, once per file of tests."""

from pathlib import Path

import pytest

from tests.tiny import save_tiny_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))
