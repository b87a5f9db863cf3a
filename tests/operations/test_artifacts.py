"""The table and the link of a run, as Prefect's server keeps them."""

import json
from typing import Any

import pytest
from prefect import flow, get_run_logger
from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from tasks.reporting.prefect_artifacts import leave_artifacts
from tests.operations.conftest import PrefectServer, free_port
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


def test_a_summary_that_makes_no_table_fails_no_report() -> None:
    """The report is the last task of a fleet of hours; what only shows it may not cost it."""
    said: list[str] = []
    leave_artifacts({"recipe": {"name": "r"}}, lambda text, *values: said.append(text % values))
    assert said == ["the run's table is not shown in Prefect: KeyError: 'run_id'"]


def test_a_server_that_is_gone_fails_no_report() -> None:
    said: list[str] = []
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api", PREFECT_CLIENT_MAX_RETRIES: 0}):
        leave_artifacts(content("third"), lambda text, *values: said.append(text % values))
    assert said and said[0].startswith("the run's table is not shown in Prefect: ")
