"""The page in use: keys, links, saving, printing, small and dark screens, another time zone."""

from pathlib import Path

import pytest

from tests.reporting.browser import Page
from tests.reporting.conftest import Fleet
from tests.reporting.page_store import HOSTILE, run_id
from tests.reporting.test_page import href

pytestmark = pytest.mark.slow
VIEWS = ("#/fleet", "#/tradeoff", "#/heat", href("dates", run_id(22)), "#/history/dates", "#/history", "#/bench")
CONTRAST = (Path(__file__).parent / "contrast.js").read_text()


def test_links_lead_to_one_chart_and_keys_walk_over_marks(opened: Page, fleet: Fleet) -> None:
    opened.go(f"#/chart/loss/adapter/dates@{run_id(22)}")
    assert opened.run("document.querySelectorAll('main figure').length") == 1
    opened.go("#/tradeoff")
    opened.run("document.querySelector('svg a[tabindex=\"0\"]').focus()")
    before = opened.run("document.activeElement.dataset.says")
    opened.press("ArrowRight", 39)
    after = opened.run("document.activeElement.dataset.says")
    assert before and after and before != after
    assert opened.run("document.querySelector('.reading').textContent") == after
    opened.run("document.activeElement.dispatchEvent(new MouseEvent('click', {bubbles: true}))")
    opened.until("document.body.dataset.shown.startsWith('#/adapter/')")


def test_charts_are_saved_as_svg_and_png(opened: Page, fleet: Fleet) -> None:
    opened.go("#/heat")
    opened.run("window.saved = []; URL.createObjectURL = (blob) => { window.saved.push(blob); return 'blob:none' };"
               "HTMLAnchorElement.prototype.click = function () {}")  # fmt: skip
    for kind in ("SVG", "PNG"):
        opened.run(f"[...document.querySelectorAll('figure button')].find(one => one.textContent === '{kind}').click()")
    opened.until("window.saved.length === 2")
    svg = opened.run("window.saved[0].text()")
    assert svg.startswith("<svg") and "arithmetic" in svg and 'fill="rgb' in svg and "var(" not in svg
    head = opened.run("window.saved[1].slice(0, 4).arrayBuffer().then(b => [...new Uint8Array(b)])")
    assert bytes(head) == b"\x89PNG" and opened.run("window.saved[1].size") > 5000


def test_a_missing_file_is_said_and_the_rest_goes_on(fleet: Fleet, tab: Page) -> None:
    tab.look()
    bench = next(fleet.many.parent.glob("data/bench-*.js"))
    aside = bench.rename(bench.with_suffix(".aside"))
    try:
        tab.open(fleet.many.as_uri())
        assert "is missing beside this page" in tab.go("#/bench")
        assert "Adapter" in tab.go("#/fleet")
        tab.complaints[:] = [one for one in tab.complaints if "ERR_FILE_NOT_FOUND" not in one]
    finally:
        aside.rename(bench)
    assert "no view called" in tab.go("#/nothing") and "has no adapter" in tab.go("#/adapter/nobody@x")


def test_a_theme_can_be_chosen(opened: Page, fleet: Fleet) -> None:
    opened.choose("#theme", "dark")
    assert opened.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    opened.choose("#theme", "auto")
    assert opened.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_an_address_leads_to_an_adapter_or_a_chart_at_once(fleet: Fleet, tab: Page) -> None:
    for page in (fleet.page, fleet.many):
        tab.open(f"{page.as_uri()}#/adapter/dates")  # the newest of that name
        assert f"run {run_id(22)}" in tab.text() and "dates.held_out" in tab.text()
        tab.open(f"{page.as_uri()}#/chart/tasks-points/adapter/dates@{run_id(18)}")
        assert tab.run("[...document.querySelectorAll('main figure')].map(one => one.id)") == ["chart-tasks-points"]
        tab.click("Copy data as TSV")
        tab.run("document.querySelector('main p a').click()")
        tab.until(f"document.body.dataset.shown === '#/adapter/dates@{run_id(18)}'")
        tab.open(f"{page.as_uri()}#/fleet?verdict=FAIL&q=dates")
        shown = tab.run("[...document.querySelectorAll('.left .verdict')].map(one => one.textContent.trim())")
        assert shown == ["✕ FAIL"]


def test_everything_is_reached_by_keys_and_the_focus_is_seen(opened: Page) -> None:
    opened.run("document.body.tabIndex = -1; document.body.focus()")
    reached = []
    for _ in range(60):
        opened.press("Tab", 9)
        found = opened.run(
            "(e => [e.localName, e.textContent.trim().slice(0, 30), getComputedStyle(e).outlineStyle,"
            "e.getBoundingClientRect().width])(document.activeElement)"
        )
        assert found[0] == "body" or (found[2] != "none" and found[3] > 0), found
        reached.append(found[1])
    for words in ("To the content", "Fleet", "Bench", "Verdict", "Target gain", "dates", "show"):
        assert any(words in one for one in reached), (words, reached)
    assert "dates" in reached and reached.index("Fleet") < reached.index("dates")


def test_arrow_keys_walk_over_the_cells_of_the_heat_map(opened: Page) -> None:
    opened.go("#/heat")
    opened.run("document.querySelector('svg [tabindex=\"0\"]').focus()")
    read = lambda: opened.run("document.querySelector('.reading').textContent")  # noqa: E731
    assert read() == "dates"
    opened.press("ArrowRight", 39)
    assert "dates" in read() and "arithmetic: " in read() and "margin −5.0" in read() and "n 300" in read()
    opened.press("ArrowDown", 40)
    assert "mirror" in read() and "arithmetic: " in read()
    assert opened.run("getComputedStyle(document.activeElement.querySelector('rect')).strokeWidth") == "3px"


def test_texts_stand_out_from_their_ground(opened: Page) -> None:
    """WCAG 2.2 AA, 1.4.3: 4.5 to 1, of every text in every view, light and dark."""
    for dark in (False, True):
        opened.look(dark=dark)
        for view in (*VIEWS, href(HOSTILE, run_id(22))):
            opened.go(view)
            assert opened.run(CONTRAST) == [], (view, dark)


def test_no_view_is_wider_than_a_phone(opened: Page, shots: Path) -> None:
    opened.look(width=360, height=800)
    for view in (*VIEWS, href(HOSTILE, run_id(22)), href("failed", run_id(22))):
        opened.go(view)
        assert opened.run("document.documentElement.scrollWidth") <= 360, view
        for words in opened.run("[...document.querySelectorAll('main table')].map(one => one.scrollWidth)"):
            assert words <= 360, view


def test_it_prints_as_a_report(opened: Page, shots: Path) -> None:
    opened.choose("#theme", "dark")
    try:
        for number, view in enumerate(VIEWS):
            opened.go(view)
            opened.look(width=718, height=1000, dark=True, printed=True)
            hidden = "nav, .filters, .tools, #theme, main button.quiet"
            assert opened.run(f"[...document.querySelectorAll('{hidden}')].every(one => !one.offsetParent)"), view
            assert opened.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
            assert opened.run(CONTRAST) == [], view
            assert opened.run("document.documentElement.scrollWidth") <= 718, view
            opened.screenshot(shots / f"print-{number}.png")
            assert opened.call("Page.printToPDF")["data"].startswith("JVBER")  # %PDF
            opened.look()
    finally:
        opened.look()
        opened.choose("#theme", "auto")


def test_times_are_the_readers(fleet: Fleet, tab: Page) -> None:
    tab.call("Emulation.setTimezoneOverride", timezoneId="Asia/Tokyo")
    try:
        tab.open(fleet.page.as_uri())
        text = tab.text().replace("\u202f", " ")
        assert "Nov 22, 2026, 6:00 PM" in text  # 9:00 in UTC
        assert "Times in Asia/Tokyo" in tab.run("document.querySelector('footer').innerText")
    finally:
        tab.call("Emulation.setTimezoneOverride", timezoneId="UTC")


def test_without_colour_a_verdict_is_still_told(opened: Page) -> None:
    marks = opened.run("[...document.querySelectorAll('main .verdict')].map(one => one.textContent.trim())")
    assert {"✓ PASS", "✕ FAIL", "? INCONCLUSIVE"} <= set(marks)
    opened.go("#/tradeoff")
    shapes = "['pass', 'fail', 'inconclusive'].map(one => document.querySelector(`.canvas .point.${one}`))"
    assert opened.run(f"{shapes}.map(one => [one.localName, getComputedStyle(one).stroke === 'none'])")[:2] == [
        ["circle", False],
        ["path", False],
    ]
    passed, _, open_one = opened.run(f"{shapes}.map(one => getComputedStyle(one).fill)")
    assert passed != open_one == opened.run("getComputedStyle(document.body).backgroundColor")  # a disc, and a ring
