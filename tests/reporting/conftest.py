"""What tests of the page share: a fleet built both ways, and one browser in which nothing odd may happen."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from infra.storage import Store
from tasks.reporting.dashboard import build_dashboard
from tests.reporting.browser import Page, browser
from tests.reporting.page_store import adapter, cure, hostile, in_nats_only, register, run_id, unfinished, write_run

NAMES = ["dates", "mirror", "sums", "capitals", "summaries", "titles", "names", "rivers"]
ALLOWED = ("file:///", "http://127.0.0.1", "data:", "blob:", "about:")


@dataclass
class Fleet:
    store: Store
    rows: list[dict[str, Any]]  # as the Parquet files have them
    page: Path
    many: Path

    def row(self, name: str, day: int = 22) -> dict[str, Any]:
        return next(row for row in self.rows if row["name"] == name and row["run_id"] == run_id(day))


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """Three runs of eight adapters, releases of two names, one cure; built as one page and as many files."""
    store = Store(str(tmp_path_factory.mktemp("store")))
    for day in (18, 20, 22):
        rows = [adapter(name, run_id(day)) for name in NAMES]
        rows[0] |= {"cure": cure(), "method": "lora"}
        if day == 22:
            rows += [hostile(run_id(day)), unfinished(run_id(day)), in_nats_only(run_id(day))]
        write_run(store, run_id(day), rows)
        if day < 22:
            register(store, "dates", day // 2 - 8, run_id(day))
    register(store, "mirror", 1, run_id(18), "FAIL")
    half = Path(store.root, "results", f"{run_id(23)}.parquet")
    half.write_bytes(Path(store.root, "results", f"{run_id(22)}.parquet").read_bytes()[:5000])
    whole = build_dashboard(store, str(tmp_path_factory.mktemp("one") / "results.html"))
    beside = build_dashboard(store, str(tmp_path_factory.mktemp("many")), single_file=False)
    assert whole.files == 0 and beside.files > 5 and whole.adapters == beside.adapters == 27
    files = sorted(file for file in Path(store.root, "results").glob("*.parquet") if file != half)
    read = [row for file in files for row in pq.read_table(file).to_pylist()]
    return Fleet(store, read, Path(whole.page), Path(beside.page))


@pytest.fixture(scope="session")
def chromium_tab() -> Iterator[Page]:
    with browser() as page:
        yield page


@pytest.fixture
def tab(chromium_tab: Page) -> Iterator[Page]:
    """No error in the console, no request but for the page and the files beside it, and no text became code."""
    page = chromium_tab
    page.look()
    page.complaints.clear()
    page.requests.clear()
    yield page
    assert page.run("window.broken") is None
    assert page.complaints == []
    assert [url for url in page.requests if not url.startswith(ALLOWED)] == []


@pytest.fixture(params=["one file", "many files"])
def opened(request: pytest.FixtureRequest, fleet: Fleet, tab: Page) -> Page:
    tab.open((fleet.page if request.param == "one file" else fleet.many).as_uri())
    return tab


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("TUNEFLEET_SCREENSHOTS") or tmp_path / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
