"""The dashboard in a real browser: every view opened and used, its figures held against the Parquet files, and texts of
all kinds shown as texts. Screenshots stay in the tests' temporary folder (and in $TUNEFLEET_SCREENSHOTS, if it is set).
"""

import csv
import io
import random
from pathlib import Path
from urllib.parse import quote

import pytest

from infra.storage import Store
from tasks.reporting.dashboard import build_dashboard
from tests.reporting.browser import Page
from tests.reporting.conftest import NAMES, Fleet
from tests.reporting.page_store import HOSTILE, TASKS, TEXTS, adapter, run_id, task, write_run

pytestmark = pytest.mark.slow
ROWS = "[...document.querySelectorAll('main tbody tr')]"


def href(name: str, run: str) -> str:
    return f"#/adapter/{quote(name, safe='')}@{run}"


def test_every_view_opens_and_is_drawn(opened: Page, fleet: Fleet, shots: Path) -> None:
    assert len(opened.run(f"{ROWS}.map(row => row.innerText)")) >= 27
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
        name, run = line[0], line[head.index("Run")]
        row = next(one for one in fleet.rows if (one["run_id"], one["name"]) == (run, name))
        assert line[head.index("Verdict")] == (row["verdict"] or row["status"])
        assert line[head.index("Size (bytes)")] == str(row["adapter_bytes"])
        assert float(line[head.index("Device time (seconds)")]) == pytest.approx(row["device_seconds"])
        target = next((one for one in row["tasks"] if one["role"] == "target"), None)
        if target and target["delta"] is not None:
            at = head.index("Target gain: task")
            said = [100 * target[key] for key in ("delta", "ci_low", "ci_high")]
            assert [float(figure) for figure in line[at + 1 : at + 4]] == pytest.approx(said, rel=1e-4)
            assert (line[at], *line[at + 4 : at + 6]) == (target["task"], "points", str(target["n"]))
    assert any(line[head.index("Data")].startswith("'=HYPERLINK") for line in lines)  # no spreadsheet runs it


def copy_of(page: Page, where: str, button: str = "Copy as TSV") -> list[list[str]]:
    """What a copying button puts on the clipboard."""
    page.run("window.copied = null; navigator.clipboard.writeText = async (text) => { window.copied = text }")
    page.click(button, within=where)
    page.until("window.copied !== null")
    return list(csv.reader(io.StringIO(page.run("window.copied"), newline=""), delimiter="\t"))


def test_filters_search_and_sorting(opened: Page, fleet: Fleet) -> None:
    opened.go("#/fleet?verdict=PASS")
    passed = [row for row in fleet.rows if row["verdict"] == "PASS"]
    assert len(opened.run(f"{ROWS}.map(row => 1)")) >= len(passed) > 0
    assert f"{len(passed)} of 27 adapters" in opened.text()
    opened.go("#/fleet")
    opened.choose("input[type=search]", "RIVERS", "input")
    opened.until("document.querySelector('.left').textContent.startsWith('3 of 27 adapters')")
    assert opened.run("location.hash") == "#/fleet?q=RIVERS"
    opened.go("#/fleet?from=2026-11-20&until=2026-11-20")
    assert "8 of 27 adapters" in opened.text()
    for label, column in (("Base", "base_model"), ("Data", "data_source"), ("Method", "method")):
        opened.go("#/fleet")
        value = fleet.row("rivers")[column]
        wanted = [row for row in fleet.rows if row[column] == value]
        box = f"[...document.querySelectorAll('.filters label')].find(one => one.textContent.startsWith('{label}'))"
        opened.run(f"{box}.querySelector('select').value = {value!r}")
        opened.run(f"{box}.querySelector('select').dispatchEvent(new Event('change'))")
        assert f"{len(wanted)} of 27 adapters" in opened.text(), (label, value)
        assert len(opened.run(f"{ROWS}.filter(row => row.closest('.table').matches('.table:first-child'))")) >= 1
    opened.go("#/fleet")
    for direction in ("descending", "ascending"):
        opened.run(
            "[...document.querySelectorAll('thead button')].find(one => one.textContent.startsWith('Size')).click()"
        )
        assert opened.run("document.querySelector('th[aria-sort$=ending]').getAttribute('aria-sort')") == direction
        head, *lines = copy_of(opened, "main .table")
        sizes = [int(line[head.index("Size (bytes)")]) for line in lines]
        assert sizes == sorted(sizes, reverse=direction == "descending")


def test_charts_hold_the_files_figures(opened: Page, fleet: Fleet) -> None:
    newest = {row["name"]: row for row in fleet.rows if row["run_id"] == run_id(22)}
    opened.go("#/heat")
    head, *lines = copy_of(opened, "figure", "Copy data as TSV")
    assert head[:2] == ["adapter", "run"]
    assert head[2:] == [f"{name} ({'nats' if 'perplexity' in name else 'points'})" for name in sorted(TASKS)]
    for line in lines:
        row = newest[line[0]]
        for name, figure in zip(sorted(TASKS), line[2:], strict=True):
            task = next((one for one in row["tasks"] if one["task"] == name), None)
            if task is None:
                assert figure == ""
                continue
            gain = -task["delta"] if "perplexity" in name else 100 * task["delta"]
            assert float(figure) == pytest.approx(gain, rel=1e-4)
    hatched = opened.run("document.querySelectorAll('svg rect[fill*=open]').length")
    open_ones = [task for row in newest.values() for task in row["tasks"] if task["verdict"] == "INCONCLUSIVE"]
    assert hatched == sum(task["role"] == "general" for task in open_ones) > 0


def test_the_scatter_holds_them_too_and_says_whom_it_leaves_out(opened: Page, fleet: Fleet) -> None:
    newest = {row["name"]: row for row in fleet.rows if row["run_id"] == run_id(22)}
    opened.go("#/tradeoff")
    _, *lines = copy_of(opened, "figure", "Copy data as TSV")
    assert {line[0] for line in lines} >= set(NAMES) and {line[1] for line in lines} == {run_id(22)}
    for line in lines:
        row = newest[line[0]]
        target = next(one for one in row["tasks"] if one["role"] == "target")
        assert [float(line[3]), float(line[6])] == pytest.approx(
            [100 * target["delta"], 100 * row["pool"]["drop"]], rel=1e-4
        )
    places = [(float(line[6]), float(line[3])) for line in lines]
    for line, (x, y) in zip(lines, places, strict=True):  # on the front is whom no other beats
        beaten = any(a <= x and b >= y and (a, b) != (x, y) for a, b in places)
        assert (line[-1] == "yes") != beaten
    assert opened.run("document.querySelectorAll('circle.step').length") == 3  # the scales of the cure
    _, reader = copy_of(opened, "#chart-tradeoff-points-nats", "Copy data as TSV")
    loss = next(task for task in newest["reader"]["tasks"] if task["role"] == "general")
    assert reader[0] == "reader" and float(reader[6]) == pytest.approx(loss["delta"], rel=1e-4)
    assert "nats per token only, which no axis of points can show" in opened.text()
    assert "Not drawn: 2 adapters without a measured gain on a target." in opened.text()


def test_nobody_on_the_front_is_beaten(tmp_path: Path, tab: Page) -> None:
    """Of many on a coarse grid, so that some are equal in one figure or in both."""
    chance, store = random.Random(7), Store(str(tmp_path / "store"))
    points = [(chance.randrange(5), chance.randrange(5)) for _ in range(30)]
    rows = [
        adapter(f"one-{at}", run_id(18))
        | {"tasks": [task("t", gain / 10, 100, role="target")], "pool": {"n_tasks": 4, "drop": drop / 100}}
        for at, (drop, gain) in enumerate(points)
    ]
    write_run(store, run_id(18), rows)
    tab.open(Path(build_dashboard(store).page).as_uri())
    tab.go("#/tradeoff")
    _, *lines = copy_of(tab, "figure", "Copy data as TSV")
    shown = {line[0]: line[-1] == "yes" for line in lines}
    for at, (drop, gain) in enumerate(points):
        beaten = any(a <= drop and b >= gain and (a, b) != (drop, gain) for a, b in points)
        assert shown[f"one-{at}"] != beaten


def test_one_adapter_shows_its_tasks_curves_and_flips(opened: Page, fleet: Fleet) -> None:
    row = next(one for one in fleet.rows if one["name"] == "dates" and one["run_id"] == run_id(22))
    text = opened.go(href("dates", run_id(22)))
    for one in row["tasks"]:
        assert one["task"] in text and one["reason"] in text
    _, *lines = copy_of(opened, "#chart-loss", "Copy data as TSV")
    assert [float(line[1]) for line in lines] == pytest.approx([one["loss"] for one in row["curve"]])
    for chart, key, times in (("speed", "tokens_per_second", 1), ("memory", "memory_bytes", 1e-9)):
        _, *lines = copy_of(opened, f"#chart-{chart}", "Copy data as TSV")
        assert [float(line[1]) for line in lines] == pytest.approx([times * one[key] for one in row["curve"]])
    _, *lines = copy_of(opened, "#chart-tasks-points", "Copy data as TSV")
    of = {line[0]: line for line in lines}
    for one in row["tasks"]:
        if one["metric"] == "acc":
            figures = [100 * one[key] for key in ("delta", "ci_low", "ci_high")]
            assert [float(figure) for figure in of[one["task"]][2:5]] == pytest.approx(figures)
    assert "The Danube." in text and "2026-11-23" in text and "Write 3 May 2021 as a date." in text
    assert "kept at 0.75" in text


def test_texts_are_texts(opened: Page, fleet: Fleet, shots: Path) -> None:
    """Markup, formulas, writing from the right, emoji, 100 kB, NaN: each is there, as it was written."""
    text = opened.go(href(HOSTILE, run_id(22)))
    whole = opened.run("document.querySelector('main').textContent")
    for one in TEXTS:
        assert one[:1200] in whole, one[:80]
    assert HOSTILE in text and "{not json" in whole and "NaN" not in whole.replace("nan", "")
    made = "main script, main img, main iframe, main [onerror], main [href^=javascript], main style"
    assert opened.run(f"document.querySelectorAll('{made}').length") == 0
    assert "show all 100,000 characters" in text
    opened.run("[...document.querySelectorAll('button')].find(one => one.textContent.includes('100,000')).click()")
    assert opened.run("[...document.querySelectorAll('.prose')].some(one => one.textContent.length === 100000)")
    opened.run("[...document.querySelectorAll('.flips button')].forEach(one => one.click())")
    flips = opened.run("[...document.querySelectorAll('.flip')].map(flip => [...flip.querySelectorAll('.sides .prose')]"
                       ".map(one => one.firstChild.textContent))")  # fmt: skip
    assert [side for side, _ in flips] == [one[:1200] for one in TEXTS] and all(a == b for a, b in flips)
    opened.screenshot(shots / "hostile-1280-light.png")
    assert "ran out of memory" in opened.go(href("failed", run_id(22)))
    opened.go("#/fleet")
    head, *lines = copy_of(opened, "main .table")
    target = next(line for line in lines if line[0] == HOSTILE)
    assert target[head.index("Target gain (points or nats)")] == ""  # a gain of NaN is no figure


def test_writing_from_the_right_turns_nothing_else_round(opened: Page) -> None:
    """The name of a document overrides the direction (U+202E); the words behind it read on from the left."""
    opened.go(href(HOSTILE, run_id(22)))
    at = opened.run(
        """(() => {
            const small = [...document.querySelectorAll('.flip h4')].find(one => one.textContent.includes('שלום'))
                .querySelector('small').firstChild;
            const left = place => { const range = document.createRange(); range.setStart(small, place);
                range.setEnd(small, place + 1); return range.getBoundingClientRect().left };
            const named = small.parentElement.parentElement.querySelector('bdi').getBoundingClientRect();
            return [named.left, named.right, left(1), left(3), left(5)]; })()"""
    )
    assert at == sorted(at) and len(set(at)) == 5


def test_a_half_written_file_is_told_and_the_rest_is_shown(opened: Page) -> None:
    told = opened.run("document.querySelector('footer').innerText")
    assert f"{run_id(23)}.parquet" in told and "27 adapters" in opened.go("#/fleet")


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


def test_the_fleet_says_what_changed_since_the_last_release(opened: Page, fleet: Fleet) -> None:
    assert "2 names trained again since a release: what changed?" in opened.go("#/fleet")
    opened.click("2 names trained again since a release: what changed?")
    assert opened.run("document.activeElement.textContent") == "Since the last release"
    head, *lines = copy_of(opened, "section .table")
    assert [line[:2] for line in lines] == [["dates", "dates@v2"], ["mirror", "mirror@v1"]]
    for line, day in zip(lines, (20, 18), strict=True):
        before, now = fleet.row(line[0], day), fleet.row(line[0])
        gain = [next(task["delta"] for task in row["tasks"] if task["role"] == "target") for row in (before, now)]
        at = head.index("Target gain, change (points or nats)")
        figures = [100 * figure for figure in (gain[1] - gain[0], *gain)]
        assert [float(figure) for figure in line[at : at + 3]] == pytest.approx(figures, abs=1e-3)
        said = opened.run("document.querySelector('section .table').innerText").replace("−", "-")
        assert (
            f"{100 * (gain[1] - gain[0]):+.1f} points" in said
            and f"{100 * gain[0]:+.1f} → {100 * gain[1]:+.1f}" in said
        )
        old = {task["task"]: task["verdict"] for task in before["tasks"]}
        new = {task["task"]: task["verdict"] for task in now["tasks"]}
        changed = {f"{task}: {old[task]} → {new[task]}" for task in old if old[task] != new[task]}
        said = line[head.index("Tasks whose verdict changed")]
        assert set(said.split("; ")) == (changed or {"none"})
        assert line[head.index("Verdict")].endswith(f"→ {now['verdict']}")
