"""Verbs around the deployments on a Prefect server: make them, and start a run of one."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import cyclopts
from cyclopts import Parameter

from flows.commands.options import AsJson, Set
from infra.errors import RequestError, StageError
from infra.settings import PROJECT

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

POLL_SECONDS = 2.0

deployment = cyclopts.App(name="deployment", group="Cluster", help="Start runs of the deployments on a Prefect server.")


def deploy(
    *,
    type_: Annotated[
        Literal["process", "docker", "kubernetes"], Parameter(name="--type", help="of the work pools that are missing")
    ] = "process",
    start_within: Annotated[
        int | None,
        Parameter(
            help="minutes; a run that a worker has taken and not started by then is marked as crashed (default: as the "
            "server has it, at first 30)"
        ),
    ] = None,
) -> int:
    """Make work pools, deployments and automations on the Prefect server, or bring them up to date.

    Example: tunefleet deploy --type kubernetes
    """
    from tasks.operations.automations import ensure_automations
    from tasks.operations.declared import FILE, declared_in, pools_of

    deployments = declared_in()
    with _server() as client:
        for pool in pools_of(deployments):
            _make_pool(client, pool, type_)
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(FILE)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise StageError(f"prefect deploy failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    for one in deployments:
        print(f"deployed {', '.join([one.name, *one.schedules])}")
    for name in ensure_automations(start_within=None if start_within is None else timedelta(minutes=start_within)):
        print(f"automation {name}")
    print(f"next, on each machine: prefect worker start --pool {' or --pool '.join(pools_of(deployments))}")
    return 0


@deployment.command
def run(
    name: Annotated[str, Parameter(help="train-adapters, or flow/deployment as Prefect writes it")],
    *,
    recipe: Annotated[
        Path | None, Parameter(help="a recipe's file, which is checked here; else the deployment's own")
    ] = None,
    set_: Set = (),
    run_on: Annotated[Literal["here", "workers"] | None, Parameter(name="--on", help="where GPUs are used")] = None,
    param: Annotated[tuple[str, ...], Parameter(negative=(), help="KEY=VALUE, value as JSON or text")] = (),
    watch: Annotated[bool, Parameter(negative=(), help="wait for its end; exit code 1 unless it completed")] = False,
    json_: AsJson = False,
) -> int:
    """Start a run of a deployment.

    Example: tunefleet deployment run train-adapters --recipe my-fleet.yaml --watch
    """
    parameters = _parameters(param)
    if set_ and recipe is None:
        raise RequestError("--set changes a recipe; give it: --recipe FILE.")
    if recipe is not None:
        from tasks.recipe.loading import load_recipe

        loaded = load_recipe(recipe, set_)
        of_project = recipe.resolve().is_relative_to(PROJECT) and not set_  # each worker has it, too, with its data
        parameters["recipe"] = (
            str(recipe.resolve().relative_to(PROJECT)) if of_project else loaded.model_dump(mode="json")
        )
    if run_on:
        parameters["run_on"] = run_on
    from prefect.deployments import run_deployment

    with _server() as client:
        full = full_name(client, name)
        started: Any = run_deployment(full, parameters=parameters, timeout=0)
    if json_:
        print(json.dumps({"deployment": full, "flow_run": str(started.id), "name": started.name}))
    else:
        print(f"{full}: started as flow run {started.name} ({started.id})")
    if not watch:
        return 0
    with _server() as client:
        while not (state := client.read_flow_run(started.id).state) or not state.is_final():
            time.sleep(POLL_SECONDS)
    print(f"{started.name}: {state.name} {state.message or ''}".rstrip(), file=sys.stderr)
    return 0 if state.is_completed() else 1


def full_name(client: "SyncPrefectClient", name: str) -> str:
    """`flow/deployment` for a name of either; RequestError if it names none, or several."""
    from prefect.exceptions import ObjectNotFound

    if "/" in name:
        with suppress(ObjectNotFound):
            client.read_deployment_by_name(name)
            return name
    flows = {flow.id: flow.name for flow in client.read_flows()}  # the server's first pages: 200 of each
    there = sorted(f"{flows[one.flow_id]}/{one.name}" for one in client.read_deployments() if one.flow_id in flows)
    found = [one for one in there if name in one.split("/")]
    if len(found) != 1:
        what = f"is the name of {len(found)}" if found else "is none"
        raise RequestError(
            f"{name!r} {what} of the deployments on {client.api_url}: {', '.join(found or there) or 'there are none'}. "
            + ("Give one of them." if there else "Run `tunefleet deploy`.")
        )
    return found[0]


@contextmanager
def _server() -> "Iterator[SyncPrefectClient]":
    """A client of the user's Prefect server; RequestError if there is none, or if it does not answer."""
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if not url:
        raise RequestError(
            "no Prefect server is named: start one (`prefect server start`) and set PREFECT_API_URL, e.g. to "
            "http://127.0.0.1:4200/api."
        )
    try:
        with get_client(sync_client=True) as client:
            yield client
    except httpx.TransportError as error:
        raise StageError(f"the Prefect server at {url} does not answer: {error!r}") from error


def _make_pool(client: "SyncPrefectClient", name: str, type_: str) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists

    gpu = "-gpu" if name.endswith("-gpu") else ""
    template = PROJECT / "infra" / "work_pools" / f"{type_}{gpu}.json"
    content = json.loads(template.read_text(encoding="utf-8")) if template.exists() else {}  # process: Prefect's own
    try:
        client.create_work_pool(WorkPoolCreate(name=name, type=type_, base_job_template=content))
    except ObjectAlreadyExists:
        print(f"work pool {name}: there already, left as it is")
    else:
        print(f"work pool {name}: made, type {type_}")


def _parameters(given: tuple[str, ...]) -> dict[str, Any]:
    """{key: value} of KEY=VALUE, where a value that is no JSON is text."""
    found: dict[str, Any] = {}
    for one in given:
        key, equals, text = one.partition("=")
        if not equals or not key:
            raise RequestError(f"--param {one}: has the form KEY=VALUE, e.g. --param store=s3://bucket/fleets")
        try:
            found[key] = json.loads(text)
        except json.JSONDecodeError:
            found[key] = text
    return found
