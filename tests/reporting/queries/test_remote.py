"""Results in a bucket: copied once, many at a time, by several processes."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from infra.storage import Store
from tasks.reporting import queries_files
from tasks.reporting.results import append_results, parquet
from tests.publishing.s3_server import BUCKET
from tests.reporting.finished_store import FIRST, finish, member, target
from tests.reporting.queries.asking import another, ask, details_of, warned, written


def test_a_remote_store_is_read_from_copies_that_follow_it(
    s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    monkeypatch.setenv("TUNEFLEET_CACHE", str(tmp_path / "cache"))
    store = Store(f"s3://{BUCKET}/queries/{tmp_path.name}")
    assert ask(store, lambda of: of.fleet()) == []
    append_results(store, finish(store, FIRST, member(store, FIRST, "tuned", target("tuned", 60))))
    written(store, "half", b"PAR1")
    names, warnings = warned(store)
    assert names == ["tuned"] and [warning.partition(" ")[0] for warning in warnings] == ["results/half.parquet"]
    copies = sorted(tmp_path.glob("cache/results/*/*/*.parquet"))
    warned(store)
    assert sorted(tmp_path.glob("cache/results/*/*/*.parquet")) == copies and len(copies) == 2
    append_results(store, finish(store, FIRST, member(store, FIRST, "renamed", target("renamed", 60))))
    store.fs.rm_file(f"{store.root}/results/half.parquet")
    assert warned(store) == (["renamed"], [])
    assert details_of(store, "renamed")["uris"]["adapter"].startswith(f"s3://{BUCKET}/queries/")


def test_a_buckets_files_are_fetched_at_the_same_time_and_one_that_goes_away_is_told(
    bucket: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = [f"2026110{day}-000000-dddd" for day in range(1, 9)]
    for run_id in days:
        written(bucket, run_id, parquet([another(run_id, run_id)]))
    fetch, together = bucket.fs.get_file, threading.Barrier(len(days))

    def met(source: str, target: str) -> None:
        together.wait(timeout=60)  # until all are under way: one after the other would break it
        if days[0] in source:
            bucket.fs.rm_file(source)
        fetch(source, target)

    monkeypatch.setattr(bucket.fs, "get_file", met)
    names, warnings = warned(bucket)
    assert names == days[:0:-1] and len(days) <= queries_files.REQUESTS
    (warning,) = warnings
    assert warning.startswith(f"results/{days[0]}.parquet is left out: it could not be fetched (FileNotFoundError")


def test_processes_that_fetch_the_same_file_do_not_take_it_from_each_other(
    bucket: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(bucket, FIRST, parquet([another(FIRST, "tuned")]))
    fetch, together = bucket.fs.get_file, threading.Barrier(2)

    def met(source: str, target: str) -> None:
        fetch(source, target)
        together.wait(timeout=60)

    monkeypatch.setattr(bucket.fs, "get_file", met)
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(lambda _: warned(bucket), range(2))) == [(["tuned"], [])] * 2


def test_a_copy_that_another_process_may_be_reading_stays_for_a_while(bucket: Store, tmp_path: Path) -> None:
    for name in ("tuned", "renamed", "again"):
        written(bucket, FIRST, parquet([another(FIRST, name)]))
        if name == "again":
            for copy in tmp_path.glob("cache/results/*/*/*"):
                os.utime(copy, (time.time() - 2 * queries_files.IN_USE,) * 2)
        assert warned(bucket) == ([name], [])
        copies = len(list(tmp_path.glob("cache/results/*/*/*")))
        assert copies == {"tuned": 1, "renamed": 2, "again": 1}[name]
