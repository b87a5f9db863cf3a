"""Two runs to ask about, on a disk and in a bucket."""

from pathlib import Path
from typing import Any

import pytest

from infra.storage import Store
from tasks.registry.channels import move
from tasks.reporting.results import append_results
from tests.publishing.s3_server import BUCKET
from tests.reporting.finished_store import (
    FIRST,
    SECOND,
    SELF_TESTS,
    finish,
    flip,
    general,
    member,
    prose,
    release,
    target,
)
from tests.reporting.queries.asking import Summaries


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "a [store] of *mine*"))


@pytest.fixture
def bucket(s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Store:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    monkeypatch.setenv("TUNEFLEET_CACHE", str(tmp_path / "cache"))
    return Store(f"s3://{BUCKET}/queries/{tmp_path.name}")


@pytest.fixture
def summaries(store: Store) -> Summaries:
    """Two runs of `tuned`, whose first one was released; one run of `other` on the same rows, and of one that died."""
    tuned = member(store, FIRST, "tuned", general("pairs", 2, 2), prose(0.0), target("tuned", 60))
    record = release(store, FIRST, tuned)
    move(store, record, "stable", expected=None)
    first = finish(store, FIRST, tuned, self_tests=SELF_TESTS, timings={"train": 3.0})
    again = member(
        store, SECOND, "tuned", general("pairs", 60, 2), prose(0.02), target("tuned", 70), some_flips=[flip(1)]
    )
    other = member(store, SECOND, "other", general("pairs", 3, 2), target("other", 60), method="qlora")
    died = member(store, SECOND, "died", target("died", 60), rows=[{"id": "z", "text": "elsewhere"}])
    died.judged = died.verdict = None
    died.error = "out of memory"
    second = finish(store, SECOND, again, other, died)
    for summary in (first, second):
        append_results(store, summary)
    return {FIRST: first, SECOND: second}
