"""The table, the picture and the links of a run, as Prefect's server keeps them and a browser shows them."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, get_run_logger
from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from tasks.reporting.picture import fleet_picture
from tasks.reporting.prefect_artifacts import leave_artifacts
from tests.operations.conftest import PrefectServer, free_port
from tests.reporting.browser import browser
from tests.reporting.test_summary import general, judged, learned, summary

pytestmark = pytest.mark.slow


def content(run: str) -> dict[str, Any]:
    one = judged("iso-dates", learned(60), general("capitals", 2, 2), release="iso-dates@v1")
    return summary(one) | {"run_id": run}


@flow
def reports(run: str) -> None:
    leave_artifacts(content(run), get_run_logger().warning)


def test_runs_of_a_recipe_follow_each_other_under_one_key(use_server: PrefectServer) -> None:
    reports("first")
    reports("second")
    table, link = Artifact.get("adapters-r"), Artifact.get("summary-r")
    assert table and link
    (row,) = json.loads(str(table.data))
    assert row["adapter"] == "iso-dates" and row["verdict"] == "PASS" and row["release"] == "iso-dates@v1"
    assert table.description and "run second" in table.description
    assert link.data == "[summary.json of run second](file:///store/runs/second/summary.json)"
    with get_client(sync_client=True) as client:
        asked = {"artifacts": {"key": {"any_": ["adapters-r"]}}}
        assert len(client.request("POST", "/artifacts/filter", json=asked).json()) == 2


def test_the_picture_travels_with_the_artifact_and_the_dashboard_opens_at_the_run(use_server: PrefectServer) -> None:
    reports("20261122-100000-aaaa")
    picture, link = Artifact.get("fleet-r"), Artifact.get("dashboard-r")
    assert picture and picture.type == "image" and link
    kind, _, data = str(picture.data).partition(",")
    assert kind == "data:image/svg+xml;base64"
    assert base64.b64decode(data).decode() == fleet_picture(content("20261122-100000-aaaa"))
    assert picture.description and "/store/runs/20261122-100000-aaaa/fleet.svg" in picture.description
    where = "file:///store/dashboard/index.html#"
    assert link.data == f"[run 20261122-100000-aaaa on the dashboard]({where}/fleet?q=20261122-100000-aaaa)"
    assert link.description and f"[iso-dates]({where}/adapter/iso-dates@20261122-100000-aaaa)" in link.description


@pytest.mark.timeout(200)
def test_prefect_s_ui_shows_the_picture(use_server: PrefectServer, tmp_path: Path) -> None:
    """In both of its versions; an image is wide once it was read."""
    reports("shown")
    picture = Artifact.get("fleet-r")
    assert picture
    wide = "one => one.src.startsWith('data:') && one.naturalWidth > 800"
    with browser() as page:
        for version in ("", "/v2"):
            root = use_server.api.removesuffix("/api")
            page.call("Page.navigate", url=f"{root}{version}/artifacts/artifact/{picture.id}")
            page.until(f"[...document.querySelectorAll('img')].some({wide})")
            page.screenshot(tmp_path / f"prefect{version.replace('/', '-')}.png")


def test_a_summary_that_makes_no_table_fails_no_report() -> None:
    """The report is the last task of a fleet of hours; what only shows it may not cost it."""
    said: list[str] = []
    leave_artifacts({"recipe": {"name": "r"}}, lambda text, *values: said.append(text % values))
    assert said == ["not all of the run is shown in Prefect: KeyError: 'run_id'"]


def test_a_server_that_is_gone_fails_no_report() -> None:
    said: list[str] = []
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api", PREFECT_CLIENT_MAX_RETRIES: 0}):
        leave_artifacts(content("third"), lambda text, *values: said.append(text % values))
    assert said and said[0].startswith("not all of the run is shown in Prefect: ")
