"""A Prefect API of its own for the flow tests, and one finished run of the tiny fleet that several tests look at."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.flows.recipes import write_tiny_recipe
from tests.tiny import save_tiny_base


@dataclass(frozen=True)
class FinishedRun:
    folder: Path
    recipe: Path
    store: Path
    summary: dict[str, Any]


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[None]:
    """An ephemeral Prefect server on a database of its own, for the whole session."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("tiny-base"))


@pytest.fixture(scope="session")
def finished_run(prefect_api: None, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    from flows.train_adapters import train_adapters

    folder = tmp_path_factory.mktemp("run")
    recipe = write_tiny_recipe(folder, tiny_base)
    store = folder / "store"
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    summary = train_adapters(str(recipe), store=str(store))
    return FinishedRun(folder, recipe, store, summary)
