"""Runs that die on a real server: marked Crashed, started again with what they were asked, and not without end."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter
from prefect.events.schemas.automations import AutomationCore
from prefect.server.events.schemas.automations import EventTrigger
from prefect.server.events.schemas.events import RelatedResource, Resource
from prefect.states import Pending

from infra.errors import RequestError
from tasks.operations import automations, notices
from tasks.operations.automations import HEARTBEATS, ensure_automations
from tasks.operations.declared import declared_in, pools_of
from tests.operations.conftest import PrefectServer, running
from tests.operations.receivers import http_receiver

pytestmark = pytest.mark.slow

NAMES = (automations.SILENT, automations.UNSTARTED, automations.RETRY, notices.TELL)
FLOW = '''
"""Writes down that it started, and with what; then waits to be killed."""
import json, os, sys, time
from pathlib import Path
from prefect import flow

@flow(name="mortal")
def mortal(place: str = "nowhere", recipe: dict = {}):
    line = json.dumps({"pid": os.getpid(), "recipe": recipe})
    with (Path(place) / "starts").open("a") as file:
        file.write(line + "\\n")
    time.sleep(300)
'''
DEPLOYMENT = """
name: mortal
deployments:
  - name: mortal
    entrypoint: flow.py:mortal
    tags: [tunefleet]
    pull:
      - prefect.deployments.steps.set_working_directory: {directory: FOLDER}
    work_pool: {name: mortal, job_variables: {env: HEARTBEATS}}
"""


@pytest.fixture
def mortal(use_server: PrefectServer, tmp_path: Path) -> PrefectServer:
    (tmp_path / "flow.py").write_text(FLOW)
    text = DEPLOYMENT.replace("FOLDER", str(tmp_path)).replace("HEARTBEATS", json.dumps(HEARTBEATS))
    (tmp_path / "prefect.yaml").write_text(text)
    use_server.prefect("work-pool", "create", "mortal", "--type", "process", "--overwrite")
    use_server.prefect("--no-prompt", "deploy", "--all", cwd=tmp_path)
    return use_server


@pytest.fixture
def no_automations(use_server: PrefectServer) -> Iterator[None]:
    """None before, none after: they would act on other tests' runs."""
    _delete_automations()
    yield
    _delete_automations()


def _delete_automations() -> None:
    with get_client(sync_client=True) as client:
        for one in [one for name in NAMES for one in client.read_automations_by_name(name)]:
            client.delete_automation(one.id)


@contextmanager
def told_through(url: str) -> Iterator[None]:
    """The server's block, for as long as the block of code lasts."""
    Webhook(url=url).save(notices.BLOCK, overwrite=True)
    try:
        yield
    finally:
        Webhook.delete(notices.BLOCK)


def submit(tmp_path: Path, **recipe: object) -> UUID:
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("mortal/mortal")
        parameters = {"place": str(tmp_path), "recipe": recipe}
        return client.create_flow_run_from_deployment(deployment.id, parameters=parameters).id


def read(run: UUID) -> FlowRun:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(run)


def until(what: str, there: Callable[[], object], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.5)


def starts(tmp_path: Path) -> list[dict]:
    file = tmp_path / "starts"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.timeout(400)
def test_a_run_whose_machine_dies_is_started_again_with_its_own_parameters_and_not_for_ever(
    mortal: PrefectServer, no_automations: None, tmp_path: Path
) -> None:
    worker = ("worker", "start", "--pool", "mortal", "--type", "process")
    with http_receiver() as (url, received), told_through(url):
        ensure_automations(silent_after=timedelta(seconds=35), retries=1, retried=["mortal"])
        run = submit(tmp_path, name="its own")
        with running(mortal, *worker, log="worker-1.log") as first:
            until("the first start", lambda: len(starts(tmp_path)) == 1)
            until("the first heartbeat", lambda: heartbeats(run))
            os.kill(first.pid, signal.SIGKILL)  # the worker first: it would tell of its child's death
            os.kill(starts(tmp_path)[0]["pid"], signal.SIGKILL)
        assert read(run).state_name == "Running", "nobody was left to say that it died"

        until("the server's notice", lambda: received)
        assert received[0]["event"] == "crashed"
        assert f"mortal crashed: run {read(run).name}, start 1 of at most 2" in received[0]["text"]
        assert "No heartbeat" in received[0]["text"]
        until("another start is scheduled", lambda: read(run).state_name == "AwaitingRetry")

        with running(mortal, *worker, log="worker-2.log"):
            until("the second start", lambda: len(starts(tmp_path)) == 2)
            os.kill(starts(tmp_path)[1]["pid"], signal.SIGKILL)  # this time its worker tells
            until("the second notice", lambda: len(received) == 2)
        assert [one["recipe"] for one in starts(tmp_path)] == [{"name": "its own"}] * 2
        assert "start 2 of at most 2" in received[1]["text"]
        time.sleep(5)  # whatever the server would do now
        assert read(run).state_type is StateType.CRASHED, "it was started again although its starts are used up"
        assert read(run).run_count == 2


@pytest.mark.timeout(200)
def test_a_run_that_nobody_starts_is_tried_once_more(
    mortal: PrefectServer, no_automations: None, tmp_path: Path
) -> None:
    with http_receiver() as (url, received), told_through(url):
        ensure_automations(start_within=timedelta(seconds=10), retried=["mortal"])
        run = submit(tmp_path)
        for number, after in ((1, "AwaitingRetry"), (2, "Crashed")):
            with get_client(sync_client=True) as client:
                assert client.set_flow_run_state(run, Pending()).status.value == "ACCEPT"  # as a worker that takes it
            until(f"crash {number}", lambda n=number: crashes(run) == n)
            until(f"{after} after crash {number}", lambda name=after: read(run).state_name == name, 20)
        until("the notice", lambda: received)
        time.sleep(5)  # whatever the server would do now
        assert read(run).state_name == "Crashed"
        assert "Not started within 10 s" in received[0]["text"]
        assert read(run).run_count == 0


def heartbeats(run: UUID) -> int:
    return events(run, "prefect.flow-run.heartbeat")


def crashes(run: UUID) -> int:
    return events(run, "prefect.flow-run.Crashed")


def events(run: UUID, name: str) -> int:
    wanted = EventFilter(
        event=EventNameFilter(name=[name]),
        resource=EventResourceFilter(id=[f"prefect.flow-run.{run}"]),
    )
    with get_client(sync_client=True) as client:
        return client.request("POST", "/events/filter", json={"filter": wanted.model_dump(mode="json")}).json()["total"]


@pytest.mark.parametrize("flow", automations.PACKS)
def test_packs_are_left_to_those_who_sent_them(flow: str) -> None:
    """Judged by the server's own code: a pack's death is seen, and neither answered nor told of."""
    place = notices.Place(id=uuid4(), kind="webhook", notifies=False)
    related = [
        {"prefect.resource.id": "prefect.tag.tunefleet", "prefect.resource.role": "tag"},
        {"prefect.resource.id": "prefect.flow.1", "prefect.resource.role": "flow", "prefect.resource.name": flow},
    ]
    crash = {"prefect.resource.id": "prefect.flow-run.1", "prefect.run-count": "1"}
    silent, retry = automations._silent(timedelta(minutes=5)), automations._retry(3, automations.RETRIED)
    (told_of,) = automations._told([place], 3, automations.RETRIED)
    assert [covers(one, crash, related) for one in (silent, retry, told_of)] == [True, False, False]
    related[1]["prefect.resource.name"] = "train-adapters"
    assert [covers(one, crash, related) for one in (silent, retry, told_of)] == [True, True, True]
    assert not covers(retry, crash | {"prefect.run-count": "4"}, related), "its starts are used up"


def covers(automation: AutomationCore, resource: dict[str, str], related: list[dict[str, str]]) -> bool:
    trigger = EventTrigger.model_validate(automation.trigger.model_dump())
    return trigger.covers_resources(Resource(resource), [RelatedResource(one) for one in related])


def test_they_are_made_once_and_then_kept_up(use_server: PrefectServer, no_automations: None) -> None:
    def there() -> dict[str, list[bool]]:
        with get_client(sync_client=True) as client:
            found = {name: [one.enabled for one in client.read_automations_by_name(name)] for name in NAMES}
        return {name: enabled for name, enabled in found.items() if enabled}

    said = ensure_automations()
    assert there() == {name: [True] for name in NAMES if name != notices.TELL}
    assert said[:2] == [
        "silent runs are crashed: no heartbeat for 10 min",
        "runs that do not start are crashed: submitted 30 min ago and not running",
    ]

    with get_client(sync_client=True) as client:
        (silent,) = client.read_automations_by_name(automations.SILENT)
        client.pause_automation(silent.id)
        (retry,) = client.read_automations_by_name(automations.RETRY)
        client.create_automation(AutomationCore(**retry.model_dump(exclude={"id"})))  # as a second deploy beside it
    with http_receiver() as (url, _), told_through(url):
        ensure_automations(silent_after=timedelta(minutes=7))
    assert there() == {name: [name != automations.SILENT] for name in NAMES}, "paused stays paused; doubles go"
    with get_client(sync_client=True) as client:
        assert client.read_automation(silent.id).trigger.within == timedelta(minutes=7)

    ensure_automations(retries=0)
    assert there().keys() == {automations.SILENT, automations.UNSTARTED}, (
        "no retries, no block: no automations for them"
    )


def test_how_long_runs_may_wait_is_kept_until_somebody_says_otherwise(
    use_server: PrefectServer, no_automations: None
) -> None:
    """Where Slurm or Kueue queues jobs a day is given once; whoever deploys next does not know of it."""

    def within() -> timedelta:
        with get_client(sync_client=True) as client:
            (one,) = client.read_automations_by_name(automations.UNSTARTED)
            return one.trigger.within

    for given, kept in ((None, 30), (1440, 1440), (None, 1440), (20, 20)):
        ensure_automations(start_within=None if given is None else timedelta(minutes=given))
        assert within() == timedelta(minutes=kept)


def test_a_plain_deploy_leaves_what_the_last_one_was_told(use_server: PrefectServer, no_automations: None) -> None:
    from flows.commands.deployments import deploy

    def within() -> timedelta:
        with get_client(sync_client=True) as client:
            (one,) = client.read_automations_by_name(automations.UNSTARTED)
            return one.trigger.within

    try:
        assert deploy(start_within=1440) == 0 and within() == timedelta(days=1)
        assert deploy() == 0 and within() == timedelta(days=1)
    finally:
        with get_client(sync_client=True) as client:
            for one in client.read_deployments():
                if "tunefleet" in one.tags:
                    client.delete_deployment(one.id)
            for pool in pools_of(declared_in()):
                client.delete_work_pool(pool)


def test_times_that_cannot_work_are_refused_together() -> None:
    with pytest.raises(RequestError) as caught:
        ensure_automations(silent_after=timedelta(seconds=30), start_within=timedelta(seconds=1), retries=-1)
    assert [fault.message.split()[0] for fault in caught.value.faults] == ["silent_after", "start_within", "retries"]
