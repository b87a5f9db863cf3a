"""Fleets complete on a real server: a worker builds the dashboard of their store, one build at a time."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from prefect import flow
from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter
from prefect.client.schemas.objects import FlowRun
from prefect.flow_engine import run_flow

from infra.storage import Store
from tasks.operations.automations import TAG
from tasks.operations.dashboards import DEPLOYMENT, ask_for_dashboard
from tasks.operations.declared import declared_in, pools_of
from tests.operations.conftest import PrefectServer, running
from tests.operations.test_automations import until
from tests.reporting.finished_store import FIRST, SECOND, finish, general, member, target

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@flow(name="ends")
def ends(store: str) -> str:
    """The end of a fleet."""
    ask_for_dashboard(store)
    return "done"


@pytest.fixture
def deployed(use_server: PrefectServer) -> Iterator[PrefectServer]:
    """The project's own deployments; none is left behind."""
    from flows.commands.deployments import deploy

    try:
        assert deploy() == 0
        yield use_server
    finally:
        with get_client(sync_client=True) as client:
            for one in client.read_deployments():
                if TAG in one.tags:
                    client.delete_deployment(one.id)
            for pool in pools_of(declared_in()):
                client.delete_work_pool(pool)
            for automation in client.read_automations():
                if automation.name.startswith("tunefleet: "):
                    client.delete_automation(automation.id)


def ended(store: Store) -> None:
    """A run of a deployment, in this process."""
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow_from_name("ends"), "ends", entrypoint="-")
        run = client.create_flow_run_from_deployment(deployment, parameters={"store": store.root})
    assert run_flow(ends, flow_run=run, parameters={"store": store.root}) == "done"


def finished(store: Store, run: str) -> None:
    finish(store, run, member(store, run, "tuned", general("pairs", 2, 2), target("tuned", 60)))


def builds() -> list[FlowRun]:
    of_it = DeploymentFilter.model_validate({"name": {"any_": [DEPLOYMENT.split("/")[1]]}})
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(deployment_filter=of_it)


def page(store: Store) -> Path:
    return Path(store.root, "dashboard", "index.html")


def test_the_dashboard_of_a_fleet_s_store_is_built_after_it(deployed: PrefectServer, tmp_path: Path) -> None:
    odd, other = Store(str(tmp_path / 'it\'s {{ a }} <store> & "more"')), Store(str(tmp_path / "other"))
    for store in (odd, other):
        finished(store, FIRST)
    for _ in range(3):
        ended(odd)
    assert [one.parameters["store"] for one in builds()] == [odd.root], "one that waits shows all three"
    ended(other)
    with running(deployed, "worker", "start", "--pool", "tunefleet", "--type", "process", log="worker.log"):
        until("the builds", done, 120)
        assert FIRST in page(odd).read_text() and FIRST in page(other).read_text()
        finished(odd, SECOND)
        ended(odd)
        until("the third build", lambda: len(builds()) == 3 and done(), 120)
    assert SECOND in page(odd).read_text() and SECOND not in page(other).read_text()
    assert all(one.state and one.state.is_completed() for one in builds())
    times = sorted((one.start_time, one.end_time) for one in builds() if one.start_time and one.end_time)
    assert len(times) == 3 and all(end <= start for (_, end), (start, _) in pairwise(times)), "one at a time"
    link = Artifact.get("dashboard")
    assert link and link.data == f"[dashboard of 2 adapters]({page(odd).as_uri()})"


def done() -> bool:
    return all(one.state and one.state.is_final() for one in builds())


def test_a_run_by_hand_asks_for_none(deployed: PrefectServer, tmp_path: Path) -> None:
    before = len(builds())
    assert ends(str(tmp_path)) == "done"
    assert len(builds()) == before


def test_a_server_without_the_deployment_fails_no_run(
    use_server: PrefectServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ended(Store(str(tmp_path)))
    assert "build-dashboard/build-dashboard is not on the server; tunefleet deploy" in caplog.text
