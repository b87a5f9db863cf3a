"""Pieces of the data that are gone, cut or late: what the page says, and what it goes on to show."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infra.storage import Store
from tasks.reporting.dashboard import build_dashboard
from tasks.reporting.page import content
from tests.reporting.browser import Page
from tests.reporting.conftest import Fleet
from tests.reporting.page_store import adapter, run_id, write_run
from tests.reporting.test_page import href

pytestmark = pytest.mark.slow
HELD = """(() => {
    window.held = [];
    const append = document.head.append.bind(document.head);
    document.head.append = (one) => (one.src?.includes('heat-1') ? window.held.push(() => append(one)) : append(one));
})()"""


@contextmanager
def instead(page: Path, part: str, change: Callable[[str], str] | None) -> Iterator[None]:
    """The file of `part` is gone, or changed, for a while."""
    (file,) = (one for one in page.parent.glob("data/*.js") if re.fullmatch(rf"{part}-[0-9a-f]{{12}}\.js", one.name))
    whole = file.read_text()
    try:
        if change:
            file.write_text(change(whole))
        else:
            file.unlink()
        yield
    finally:
        file.write_text(whole)


def without_complaints(tab: Page, *expected: str) -> None:
    """The browser itself tells of a file that is gone, or of a script that is none."""
    tab.run("0")
    tab.complaints[:] = [one for one in tab.complaints if not any(words in one for words in expected)]


@pytest.fixture
def paged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A heat map of two pages, each in a piece of its own."""
    monkeypatch.setattr(content, "HEAT_ROWS", 40)
    store = Store(str(tmp_path / "store"))
    write_run(store, run_id(18), [adapter(f"one-{at:02d}", run_id(18)) for at in range(60)])
    return Path(build_dashboard(store, str(tmp_path / "page"), single_file=False).page)


@pytest.mark.parametrize(
    ("part", "view"), [("heat-0", "#/heat"), ("adapters-0", href("dates", run_id(22))), ("bench", "#/bench")]
)
def test_a_piece_that_is_gone_is_said_in_the_view(fleet: Fleet, tab: Page, part: str, view: str) -> None:
    with instead(fleet.many, part, None):
        tab.open(f"{fleet.many.as_uri()}{view}")
        assert f"data/{part}-" in tab.text() and "is missing beside this page" in tab.text()
        without_complaints(tab, "ERR_FILE_NOT_FOUND")
    tab.go("#/fleet")
    assert "is missing" not in tab.go(view)  # it is asked for again


@pytest.mark.parametrize("kept", [0, 60, 2000])
@pytest.mark.parametrize(("part", "view"), [("fleet", "#/fleet"), ("heat-0", "#/heat")])
def test_a_file_that_was_cut_is_said(fleet: Fleet, tab: Page, part: str, view: str, kept: int) -> None:
    with instead(fleet.many, part, lambda whole: whole[:kept]):
        tab.open(f"{fleet.many.as_uri()}{view}")
        assert f"data/{part}-" in tab.text() and "is cut or damaged" in tab.text()
        without_complaints(tab, "SyntaxError")


def test_the_next_page_of_a_heat_map_says_that_it_is_gone(paged: Path, tab: Page) -> None:
    with instead(paged, "heat-1", None):
        tab.open(f"{paged.as_uri()}#/heat")
        tab.click("older →")
        tab.until("document.querySelector('main').innerText.includes('is missing beside this page')")
        assert "2 of 2" in tab.text() and not tab.run("document.querySelectorAll('main svg').length")
        without_complaints(tab, "ERR_FILE_NOT_FOUND")
        tab.click("← newer")
        tab.until("document.querySelectorAll('main svg').length === 1")
        assert "is missing" not in tab.text()


def test_a_piece_that_comes_late_covers_no_newer_choice(paged: Path, tab: Page) -> None:
    tab.open(f"{paged.as_uri()}#/heat")
    tab.run(HELD)
    tab.click("older →")  # waits for its piece
    tab.choose("input[type=search]", "one-07", "input")
    names = "[...document.querySelectorAll('main svg a')].map(one => one.dataset.says)"
    tab.until(f"{names}.length === 1")
    tab.run("new Promise(done => { window.arrived = window.tunefleet; window.tunefleet = (...part) => {"
            "window.arrived(...part); setTimeout(done, 100) }; window.held.forEach(one => one()) })")  # fmt: skip
    assert tab.run(names) == ["one-07"]
