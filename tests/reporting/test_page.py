"""The dashboard in a real browser: every view opened and used, its figures held against the Parquet files, and texts of
all kinds shown as texts. Screenshots stay in the tests' temporary folder (and in $TUNEFLEET_SCREENSHOTS, if it is set).
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow.parquet as pq
import pytest

from infra.storage import Store
from tasks.reporting.dashboard import build_dashboard
from tests.reporting.browser import Page, browser
from tests.reporting.page_store import HOSTILE, TASKS, adapter, cure, hostile, register, run_id, unfinished, write_run

pytestmark = pytest.mark.slow
NAMES = ["dates", "mirror", "sums", "capitals", "summaries", "titles", "names", "rivers"]
ROWS = "[...document.querySelectorAll('main tbody tr')]"


@dataclass
class Fleet:
    store: Store
    rows: list[dict[str, Any]]
    page: Path
    many: Path


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """Three runs of eight adapters, releases of two names, one cure; built as one page and as many files."""
    store = Store(str(tmp_path_factory.mktemp("store")))
    for day in (18, 20, 22):
        rows = [adapter(name, run_id(day)) for name in NAMES]
        rows[0] |= {"cure": cure(), "method": "lora"}
        if day == 22:
            rows += [hostile(run_id(day)), unfinished(run_id(day))]
        write_run(store, run_id(day), rows)
        if day < 22:
            register(store, "dates", day // 2 - 8, run_id(day))
    register(store, "mirror", 1, run_id(18), "FAIL")
    whole = build_dashboard(store, str(tmp_path_factory.mktemp("one") / "results.html"))
    beside = build_dashboard(store, str(tmp_path_factory.mktemp("many")), single_file=False)
    assert whole.files == 0 and beside.files > 5 and whole.adapters == beside.adapters == 26
    files = sorted(Path(store.root, "results").glob("*.parquet"))
    read = [row for file in files for row in pq.read_table(file).to_pylist()]
    return Fleet(store, read, Path(whole.page), Path(beside.page))


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    with browser() as page:
        yield page


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("TUNEFLEET_SCREENSHOTS") or tmp_path / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(autouse=True)
def nothing_odd(tab: Page) -> Iterator[None]:
    """No error in the console, no request but for the page and the files beside it, and no text became code."""
    tab.complaints.clear()
    tab.requests.clear()
    yield
    assert tab.run("window.broken") is None
    assert tab.complaints == []
    allowed = ("file:///", "http://127.0.0.1", "data:", "blob:", "about:")
    assert [url for url in tab.requests if not url.startswith(allowed)] == []


@pytest.fixture(params=["one file", "many files"])
def opened(request: pytest.FixtureRequest, fleet: Fleet, tab: Page) -> Page:
    tab.look()
    tab.open((fleet.page if request.param == "one file" else fleet.many).as_uri())
    return tab


def href(name: str, run: str) -> str:
    return f"#/adapter/{quote(name, safe='')}@{run}"


def test_every_view_opens_and_is_drawn(opened: Page, fleet: Fleet, shots: Path) -> None:
    assert len(opened.run(f"{ROWS}.map(row => row.innerText)")) >= 26
    views = {
        **{
            "fleet": "#/fleet",
            "tradeoff": "#/tradeoff",
            "heat": "#/heat",
            "history": "#/history/dates",
            "bench": "#/bench",
        },
        "adapter": href("dates", run_id(22)),
    }
    for name, route in views.items():
        text = opened.go(route)
        assert "missing beside" not in text and len(text) > 200, (name, text)
        assert name == "fleet" or opened.run("document.querySelectorAll('main svg').length"), name
        for width, dark in ((1280, False), (1280, True), (360, False)):
            opened.look(width=width, dark=dark)
            opened.screenshot(shots / f"{name}-{width}-{'dark' if dark else 'light'}.png")
            wide = opened.run("document.documentElement.scrollWidth")
            assert wide <= width, f"{name} is {wide} pixels wide in a window of {width}"
        opened.look()


def test_the_fleet_says_what_the_files_say(opened: Page, fleet: Fleet) -> None:
    copied = copy_of(opened, "main .table")
    head, *lines = copied
    assert len(lines) == len(fleet.rows)
    for line in lines:
        name, run = line[0].lstrip("'").rsplit("@", 1)
        row = next(one for one in fleet.rows if one["run_id"] == run and " ".join(one["name"].split()) == name)
        assert line[head.index("Verdict")] == (row["verdict"] or row["status"])
        assert line[head.index("Size")] == str(row["adapter_bytes"])
        assert float(line[head.index("Device time")]) == pytest.approx(row["device_seconds"])
        target = next((one for one in row["tasks"] if one["role"] == "target"), None)
        if target and target["delta"] is not None:
            said = line[head.index("Target gain")].replace("−", "-")
            assert f"{100 * target['delta']:+.1f} points" in said and f"n {target['n']}" in said
    assert any(line[head.index("Data")].startswith("'=HYPERLINK") for line in lines)  # no spreadsheet runs it


def copy_of(page: Page, where: str, button: str = "Copy as TSV") -> list[list[str]]:
    """What a copying button puts on the clipboard."""
    page.run("window.copied = null; navigator.clipboard.writeText = async (text) => { window.copied = text }")
    page.click(button, within=where)
    page.until("window.copied !== null")
    return [line.split("\t") for line in page.run("window.copied").split("\n")]


def test_filters_search_and_sorting(opened: Page, fleet: Fleet) -> None:
    opened.go("#/fleet?verdict=PASS")
    passed = [row for row in fleet.rows if row["verdict"] == "PASS"]
    assert len(opened.run(f"{ROWS}.map(row => 1)")) >= len(passed) > 0
    assert f"{len(passed)} of 26 adapters" in opened.text()
    opened.go("#/fleet")
    opened.choose("input[type=search]", "RIVERS", "input")
    opened.until("document.querySelector('.left').textContent === '3 of 26 adapters'")
    assert opened.run("location.hash") == "#/fleet?q=RIVERS"
    opened.go("#/fleet?from=2026-11-20&until=2026-11-20")
    assert "8 of 26 adapters" in opened.text()
    opened.go("#/fleet")
    for direction in ("descending", "ascending"):
        opened.run(
            "[...document.querySelectorAll('thead button')].find(one => one.textContent.startsWith('Size')).click()"
        )
        assert opened.run("document.querySelector('th[aria-sort$=ending]').getAttribute('aria-sort')") == direction
        head, *lines = copy_of(opened, "main .table")
        sizes = [int(line[head.index("Size")]) for line in lines]
        assert sizes == sorted(sizes, reverse=direction == "descending")


def test_charts_hold_the_files_figures(opened: Page, fleet: Fleet) -> None:
    newest = {row["name"]: row for row in fleet.rows if row["run_id"] == run_id(22)}
    opened.go("#/heat")
    head, *lines = copy_of(opened, "figure", "Copy data as TSV")
    assert head[1:] == [f"{name} ({'nats' if 'perplexity' in name else 'points'})" for name in sorted(TASKS)]
    for line in lines:
        row = newest.get(line[0].rsplit("@", 1)[0])
        for name, figure in zip(sorted(TASKS), line[1:], strict=True) if row else ():
            task = next(one for one in row["tasks"] if one["task"] == name)
            gain = -task["delta"] if "perplexity" in name else 100 * task["delta"]
            assert float(figure) == pytest.approx(gain, rel=1e-4)
    opened.go("#/tradeoff")
    head, *lines = copy_of(opened, "figure", "Copy data as TSV")
    assert {line[0].rsplit("@")[0] for line in lines} >= set(NAMES)
    for line in lines:
        row = newest[line[0].rsplit("@", 1)[0]]
        target = next(one for one in row["tasks"] if one["role"] == "target")
        assert [float(line[2]), float(line[5])] == pytest.approx(
            [100 * target["delta"], 100 * row["pool"]["drop"]], rel=1e-4
        )
    front = [(float(line[5]), float(line[2])) for line in lines if line[-1] == "yes"]
    for line in lines:  # nobody off the front beats somebody on it in both
        assert line[-1] == "yes" or any(x <= float(line[5]) and y >= float(line[2]) for x, y in front)
    assert opened.run("document.querySelectorAll('circle.step').length") == 3  # the scales of the cure


def test_one_adapter_shows_its_tasks_curves_and_flips(opened: Page, fleet: Fleet) -> None:
    row = next(one for one in fleet.rows if one["name"] == "dates" and one["run_id"] == run_id(22))
    text = opened.go(href("dates", run_id(22)))
    for task in row["tasks"]:
        assert task["task"] in text and task["reason"] in text
    _, *lines = copy_of(opened, "#chart-loss", "Copy data as TSV")
    assert [float(line[1]) for line in lines] == pytest.approx([one["loss"] for one in row["curve"]])
    _, *lines = copy_of(opened, "#chart-tasks-points", "Copy data as TSV")
    of = {line[0]: line for line in lines}
    for task in row["tasks"]:
        if task["metric"] == "acc":
            figures = [100 * task[key] for key in ("delta", "ci_low", "ci_high")]
            assert [float(one) for one in of[task["task"]][2:5]] == pytest.approx(figures)
    assert "The Danube." in text and "2026-11-23" in text and "Write 3 May 2021 as a date." in text
    assert "kept at 0.75" in text


def test_texts_are_texts(opened: Page, fleet: Fleet, shots: Path) -> None:
    text = opened.go(href(HOSTILE, run_id(22)))
    assert (
        HOSTILE in text and "emoji" in text and "{not json" in opened.run("document.querySelector('main').textContent")
    )
    assert (
        opened.run("document.querySelectorAll('main script, main img, main [onerror], main [href^=javascript]').length")
        == 0
    )
    assert "show all 100,000 characters" in text
    opened.run("[...document.querySelectorAll('button')].find(one => one.textContent.includes('100,000')).click()")
    assert opened.run("[...document.querySelectorAll('.prose')].some(one => one.textContent.length === 100000)")
    opened.screenshot(shots / "hostile-1280-light.png")
    assert "ran out of memory" in opened.go(href("failed", run_id(22)))


def test_history_follows_the_releases(opened: Page, fleet: Fleet) -> None:
    assert "dates@v1" in opened.go("#/history/dates") and "dates@v2" in opened.text()
    opened.choose("main select", "arithmetic")
    _, *lines = copy_of(opened, "#chart-history", "Copy data as TSV")
    measured = [next(t for t in row["tasks"] if t["task"] == "arithmetic")
                for row in sorted(fleet.rows, key=lambda one: one["run_id"]) if row["name"] == "dates"][:2]  # fmt: skip
    assert [[float(line[1]), float(line[4])] for line in lines] == [
        pytest.approx([100 * one["delta"], -5]) for one in measured
    ]
    assert "was never released" in opened.go("#/history/nobody")
    assert "v2" in opened.go("#/fleet") and "Since the last release" in opened.text()


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
