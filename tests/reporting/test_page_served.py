"""The page on a server that renews it, and the page of a large fleet."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

from benchmarks.dashboard import write_synthetic
from infra.storage import Store
from tasks.reporting.dashboard import build_dashboard
from tasks.reporting.page.serving import server
from tests.publishing.s3_server import BUCKET, s3_server
from tests.reporting.browser import Page
from tests.reporting.page_store import adapter, run_id, write_run

pytestmark = pytest.mark.slow


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Store, str]]:
    store = Store(str(tmp_path / "store"))
    write_run(store, run_id(18), [adapter("dates", run_id(18))])
    with server(store, str(tmp_path / "served"), watch=0.1) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield store, f"http://127.0.0.1:{serving.server_address[1]}/"
        serving.shutdown()


def test_an_open_reader_is_told_of_new_results(served: tuple[Store, str], tab: Page) -> None:
    store, address = served
    tab.open(f"{address}#/fleet?q=mirror")
    assert "0 of 1 adapter" in tab.text() and tab.run("document.getElementById('newer').textContent") == ""
    (Path(store.root) / "results" / "20261119-090000-bad0.parquet").write_bytes(b"PAR1 half of it")
    write_run(store, run_id(20), [adapter("mirror", run_id(20))])
    tab.until("document.getElementById('newer').textContent.startsWith('The results have changed.')")
    tab.run("window.old = true")
    tab.click("Show them")
    tab.until("window.old === undefined && document.body?.dataset.shown !== undefined")
    assert "1 of 2 adapters" in tab.text() and "mirror" in tab.text()  # the same view, newer
    assert "bad0" in tab.run("document.querySelector('footer').innerText")
    assert {url.split("?")[0] for url in tab.requests if url.startswith("http")} <= {address, f"{address}now.js"}
    tab.call("Page.navigate", url="about:blank")  # the server ends before the browser does


@contextmanager
def served_by_the_verb(
    store: str, folder: Path, environment: dict[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`tunefleet dashboard --serve` and its address; what it builds lies below `folder`."""
    verb = (
        "from flows.commands.dashboards import dashboard; raise SystemExit(dashboard(store={!r}, serve=True, port=0))"
    )
    folder.mkdir()
    given = os.environ | (environment or {}) | {"TMPDIR": str(folder)}
    process = subprocess.Popen([sys.executable, "-c", verb.format(store)], text=True, env=given,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    try:
        assert process.stdout
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def test_a_run_beside_the_server_takes_no_reader_from_it(tmp_path: Path) -> None:
    """`tunefleet run` builds the store's own page, which asks nobody whether it is still the newest."""
    store = Store(str(tmp_path / "store"))
    write_run(store, run_id(18), [adapter("dates", run_id(18))])
    with served_by_the_verb(store.root, tmp_path / "own") as (process, address):
        write_run(store, run_id(20), [adapter("mirror", run_id(20))])
        assert urlopen(f"{address}now.js").read()  # it has built that already
        build_dashboard(store)
        page = urlopen(address).read().decode()
        assert '"watch":10.0' in page.replace(" ", "") and '"mirror"' in page
        assert '"watch":null' in (Path(store.root) / "dashboard" / "index.html").read_text().replace(" ", "")
        assert any((tmp_path / "own").iterdir())
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
        assert not any((tmp_path / "own").glob("tunefleet-dashboard-*"))


def test_a_bucket_that_is_away_takes_no_page_away(tmp_path: Path) -> None:
    local = Store(str(tmp_path / "local"))
    results = write_run(local, run_id(18), [adapter("dates", run_id(18))])
    with ExitStack() as later:
        with s3_server(tmp_path / "s3") as s3:
            s3.client.put_object(Bucket=BUCKET, Key=f"fleet/results/{results.name}", Body=results.read_bytes())
            environment = s3.environment() | {"AWS_ENDPOINT_URL": s3.endpoint_url}
            serving = served_by_the_verb(f"s3://{BUCKET}/fleet", tmp_path / "own", environment)
            process, address = later.enter_context(serving)
            assert '"dates"' in urlopen(address).read().decode()
        assert '"dates"' in urlopen(address, timeout=200).read().decode()  # the bucket is gone
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert "the page stays as it was: " in told and "Traceback" not in told


def test_a_page_of_a_disk_asks_nobody(tmp_path: Path, tab: Page) -> None:
    store = Store(str(tmp_path / "store"))
    write_run(store, run_id(18), [adapter("dates", run_id(18))])
    tab.open(Path(build_dashboard(store, watch=0.01).page).as_uri())
    tab.run("new Promise(done => setTimeout(done, 300))")
    assert [url for url in tab.requests if "now.js" in url] == []


def test_the_server_leaves_when_it_is_interrupted(tmp_path: Path) -> None:
    write_run(Store(str(tmp_path)), run_id(18), [adapter("dates", run_id(18))])
    with served_by_the_verb(str(tmp_path), tmp_path / "own") as (process, address):
        assert address.startswith("http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate(timeout=60)
        assert process.returncode == 0 and "Traceback" not in complaint


def test_a_large_fleet_opens_with_its_first_view(
    tmp_path: Path, tab: Page, record_property: Callable[[str, object], None]
) -> None:
    """How long it takes is written down and not asserted: the machine may have other things to do."""
    store = Store(str(tmp_path / "store"))
    write_synthetic(store, adapters=1000, tasks=20, runs=10)
    built = build_dashboard(store)
    beside = [file.stat().st_size for file in (Path(built.page).parent / "data").iterdir()]
    assert built.size < 5e6 and built.files == len(beside) > 5 and max(beside) < 5e6
    begun = time.perf_counter()
    tab.open(Path(built.page).as_uri())
    record_property("first view, seconds", time.perf_counter() - begun)
    assert "1,000 adapters" in tab.text()
    assert {url.rsplit("/", 1)[1].split("-")[0] for url in tab.requests if "/data/" in url} == {"fleet"}
    assert "1,000 adapters" in tab.go("#/heat") and "1 of 25" in tab.text()
    tab.click("older →")
    tab.until("document.querySelector('main').innerText.includes('2 of 25')")
