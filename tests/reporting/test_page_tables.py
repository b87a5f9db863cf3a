"""Tables in use: an order and a length that outlive a filter, what is copied, what is printed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.storage import Store
from tasks.reporting.dashboard import build_dashboard
from tests.reporting.browser import Page
from tests.reporting.conftest import Fleet
from tests.reporting.page_store import adapter, cure, run_id, write_run
from tests.reporting.test_page import ROWS, copy_of, href

pytestmark = pytest.mark.slow
ODD = ['"quoted" name', "tab\there", "two\nlines", "=1+1", "  =1+1", "-2", "\t@cmd"]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 adapters, so that not all rows are shown at once."""
    store = Store(str(tmp_path_factory.mktemp("store")))
    write_run(store, run_id(18), [adapter(f"one-{at:03d}", run_id(18)) for at in range(150)])
    return Path(build_dashboard(store).page)


@pytest.fixture
def table(many: Path, tab: Page) -> Iterator[Page]:
    tab.open(many.as_uri())
    yield tab


def sort_by(page: Page, label: str) -> None:
    page.run(
        f"[...document.querySelectorAll('thead button')].find(one => one.textContent.startsWith('{label}')).click()"
    )


def order_of(page: Page) -> list[str]:
    return list(page.run("[...document.querySelectorAll('th[aria-sort$=ending]')].map(one => one.textContent)"))


def test_the_order_and_the_rows_that_were_asked_for_outlive_a_filter(table: Page) -> None:
    sort_by(table, "Size")
    table.click("100 of 150 rows shown – show more")
    first = table.run(f"{ROWS}[0].querySelector('a').textContent")
    assert table.run(f"{ROWS}.length") == 150 and order_of(table) == ["Size ↓"]
    table.choose("input[type=search]", "one-", "input")
    table.until("location.hash === '#/fleet?sort=-Size&q=one-'")
    assert table.run(f"{ROWS}.length") == 150 and order_of(table) == ["Size ↓"]
    assert table.run(f"{ROWS}[0].querySelector('a').textContent") == first


def test_an_order_is_part_of_the_address(table: Page, many: Path) -> None:
    sort_by(table, "Adapter")
    sort_by(table, "Adapter")
    assert table.run("location.hash") == "#/fleet?sort=-Adapter" and order_of(table) == ["Adapter ↓"]
    table.open(f"{many.as_uri()}#/fleet?sort=-Adapter&q=one")
    assert order_of(table) == ["Adapter ↓"] and table.run(f"{ROWS}[0].querySelector('a').textContent") == "one-149"


def test_all_that_the_filters_show_is_printed(table: Page) -> None:
    table.run(f"addEventListener('beforeprint', () => (window.printed = {ROWS}.length))")
    for route, rows in (("#/fleet", 150), ("#/fleet?q=one-0", 100)):
        table.go(route)
        assert table.call("Page.printToPDF")["data"].startswith("JVBER")  # %PDF
        assert table.run("window.printed") == rows
        table.until(f"{ROWS}.length === 100")


def test_what_is_copied_has_units_and_the_figures_of_the_table(opened: Page, fleet: Fleet) -> None:
    row = fleet.row("dates")
    opened.go(href("dates", run_id(22)))
    at = "[...document.querySelectorAll('main section')].find(one => one.textContent.startsWith('Tasks'))"
    opened.run(f"{at}.id = 'tasks'")
    head, *lines = copy_of(opened, "#tasks .table")
    tasks = {task["task"]: task for task in row["tasks"]}
    assert len(lines) == len(tasks)
    for line in lines:
        of: dict[str, Any] = dict(zip(head, line, strict=True))
        task = tasks[of["Task"]]
        nats = task["metric"] == "nll_per_token"
        times, turn = (1, -1) if nats else (100, 1)
        margin = task["margin"] if task["role"] == "target" else -task["margin"]
        interval = sorted(turn * task[key] for key in ("ci_low", "ci_high"))
        wanted = [task["base"], task["adapter"], turn * task["delta"], *interval, margin]
        units = ("Base (% or nats)", "Adapter (% or nats)", "Difference (points or nats)")
        keys = (*units, "Difference, low", "Difference, high", "Margin (points or nats)")
        assert [float(of[key]) for key in keys] == pytest.approx([times * figure for figure in wanted])
        assert of["Difference, unit"] == ("nats" if nats else "points") and of["n (documents)"] == str(task["n"])
        assert of["Lost (documents)"] == ("" if nats else str(task["lost"]))
    said = opened.run("document.querySelector('#tasks table').innerText").replace("−", "-")
    assert f"{100 * row['tasks'][0]['delta']:+.1f} points" in said


def test_a_spreadsheet_reads_every_text_as_it_was(tmp_path: Path, tab: Page) -> None:
    store = Store(str(tmp_path))
    write_run(store, run_id(18), [adapter(name, run_id(18)) for name in ODD])
    tab.open(Path(build_dashboard(store).page).as_uri())
    _, *lines = copy_of(tab, "main .table")
    assert [line[0] for line in lines] == [*ODD[:3], "'=1+1", "'  =1+1", "'-2", "'\t@cmd"]


def test_a_cure_is_copied_as_figures(tmp_path: Path, tab: Page) -> None:
    store = Store(str(tmp_path))
    write_run(store, run_id(18), [adapter("dates", run_id(18)) | {"cure": cure()}])
    tab.open(f"{Path(build_dashboard(store).page).as_uri()}#/adapter/dates")
    tab.run("[...document.querySelectorAll('main section')].find(one => one.innerText.startsWith('Cure')).id = 'cure'")
    head, first, *_ = copy_of(tab, "#cure .table")
    of = dict(zip(head, first, strict=True))
    assert of["Candidate"] == "scale 1" and [float(of[f"{label} (points or nats)"]) for label in
                                             ("Target", "General, average")] == [50, -8]  # fmt: skip
