"""After a fleet its store's dashboard is built anew: the run asks the server for a run of build-dashboard.

The run asks, rather than an automation of the server that listens for its end. It knows the store as it is, where an
automation has only what was asked for; and a server on SQLite loses events while its database is locked (of three
fleets that ended within three seconds one was not shown), but no request.

The deployment lets one build run at a time, others wait. A build reads the store when it starts, so the last one shows
all that was finished before, and one that waits already will show this run too: there is no need for another.
"""

from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter
from prefect.client.schemas.objects import StateType
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger

from infra.redaction import without_secrets

DEPLOYMENT = "build-dashboard/build-dashboard"


def ask_for_dashboard(store: str) -> None:
    """Let a worker build the dashboard of `store`, if this is a run of a deployment; nothing here fails the run.

    Others may have a store that no worker sees, and `tunefleet run` builds its dashboard itself.
    """
    context = FlowRunContext.get()
    if not context or not context.flow_run or not context.flow_run.deployment_id:
        return
    try:
        with get_client(sync_client=True) as client:
            deployment = client.read_deployment_by_name(DEPLOYMENT)
            if not _is_waiting(client, deployment.id, store):
                client.create_flow_run_from_deployment(deployment.id, parameters={"store": store})
    except ObjectNotFound:
        get_run_logger().warning("the dashboard is not built: %s is not on the server; tunefleet deploy", DEPLOYMENT)
    except Exception as error:  # noqa: BLE001 - whatever it was, the run is finished and its results are kept
        said = without_secrets(f"{type(error).__name__}: {error}")
        get_run_logger().warning("the dashboard is not built: %s", said)


def _is_waiting(client: SyncPrefectClient, deployment: Any, store: str) -> bool:
    """A build of this store was asked for, and has not started. What schedules made comes when it comes."""
    runs = client.read_flow_runs(
        deployment_filter=DeploymentFilter.model_validate({"id": {"any_": [deployment]}}),
        flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": [StateType.SCHEDULED]}}}),
    )
    return any(run.parameters.get("store") == store and not run.auto_scheduled for run in runs)
