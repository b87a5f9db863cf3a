"""`tunefleet dashboard`, and the dashboard that `tunefleet run` leaves, as a user meets them."""

import re
from pathlib import Path

import pytest

from flows.commands.dashboards import build_dashboard
from infra.storage import Store
from tests.flows.recipes import write_tiny_recipe
from tests.flows.test_cli import tunefleet
from tests.reporting.finished_store import FIRST, finish, general, member, target


def finished(folder: Path) -> Store:
    store = Store(str(folder))
    finish(store, FIRST, member(store, FIRST, "tuned", general("pairs", 2, 2), target("tuned", 60)))
    return store


def test_the_command_prints_the_page_s_place_and_what_it_left_out(tmp_path: Path) -> None:
    store = finished(tmp_path / "store")
    done = tunefleet("dashboard", "--store", store.root, cwd=tmp_path)
    page = tmp_path / "store" / "dashboard" / "index.html"
    assert done.returncode == 0 and done.stdout == f"{page}\n", done.stderr
    assert FIRST in page.read_text() and re.match(r"1 adapters, 0\.\d MB\n$", done.stderr)

    (tmp_path / "store" / "results" / "cut.parquet").write_bytes(b"PAR1")
    one = tunefleet("dashboard", "--store", store.root, "--output", "one.html", cwd=tmp_path)
    assert one.returncode == 0 and FIRST in (tmp_path / "one.html").read_text()
    assert "warning: " in one.stderr and "cut.parquet" in one.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--port", "70000"], "--port is 70000"), (["--output", "file/sub"], "cannot be written to")],
)
def test_a_wrong_request(words: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = tunefleet("dashboard", "--store", finished(tmp_path / "store").root, *words, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and done.stdout == "", done.stderr


def test_a_dashboard_that_cannot_be_built_is_no_fault_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = finished(tmp_path / "store")
    (tmp_path / "store" / "dashboard").write_text("a file where the folder should be")
    build_dashboard(store.root, False)
    out, err = capsys.readouterr()
    assert out == "" and "warning: the dashboard was not built: " in err and "Traceback" not in err


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_ends_with_its_dashboard(tiny_base: Path, tmp_path: Path) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_base)
    done = tunefleet("run", recipe, "--store", tmp_path / "store", cwd=tmp_path, timeout=380)
    assert done.returncode in (0, 3), done.stderr
    summary, dashboard = done.stdout.splitlines()[-2:]
    page = tmp_path / "store" / "dashboard" / "index.html"
    run = summary.removeprefix("summary: ").split("/")[-2]
    assert dashboard == f"dashboard: {page}" and run in page.read_text()
    assert (tmp_path / "store" / "runs" / run / "fleet.svg").read_text().startswith("<svg")
