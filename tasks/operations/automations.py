"""Automations of the Prefect server: a run that died is marked Crashed, started again, and told of.

A process that is killed with its worker cannot say so: without these its run stays Running for ever. The server itself
has to notice. `tunefleet deploy` makes them; they watch the runs whose tag is `tunefleet`.

    silent      heartbeats stopped: Crashed. Prefect sends one every 3 minutes; with HEARTBEATS in a run's environment
                (the deployments' job_variables.env, on every kind of work pool) it is every 30 seconds. Nothing is said
                of a run that never sent one: it may be that heartbeats are off, or do not get through.
    unstarted   Pending, and nothing came of it: its worker died between taking the run and starting it. Pods that wait
                for a GPU are not meant: Kubernetes' worker calls these InfrastructurePending. But a job that Kueue or
                Slurm keeps waiting has no pod, or no process, and looks dead: `tunefleet deploy --start-within` has to
                be longer than such a queue.
    retried     the same flow run is scheduled again after it crashed, so that it keeps its parameters and its tags (the
                action that runs a deployment would take the deployment's defaults). What was finished is found in the
                store. The server counts how often a run entered Running and writes the count on each event: a run that
                crashed in its last allowed start matches no more. Each count is answered once a day, which bounds runs
                that crash before they enter Running, whose count stays 0.
    told        a message for each crash, through the blocks called `tunefleet-notices` that the server can use itself,
                and that were there when this was made. It says what the run's state says, as it stands: the server
                blanks no secrets, as runs do before they tell.

An event may be evaluated more than once (a server on SQLite does it when its database is locked, four times, and then
drops it for every trigger that has not had its turn). Hence triggers that answer a crash remember it for a while, and
those that wait for signs of life do not listen to crashes: these are then heard by nobody who has to read first.

Packs are marked, but neither retried nor told of here: the run that sent them waits for them and sends them again.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

from infra.errors import Fault, RequestError
from tasks.operations.notices import BLOCK, TELL, Place, find_places

TAG = "tunefleet"
HEARTBEAT = timedelta(seconds=30)  # the shortest that Prefect takes
HEARTBEATS = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": f"{HEARTBEAT.seconds}"}  # for job_variables.env
RETRIED = ("train-adapters", "build-dashboard")  # flows that nobody else starts again
PACKS = ("train-pack", "evaluate-adapters")  # a run sent them and waits for them: it sends again, and tells

SILENT = "tunefleet: silent runs are crashed"
UNSTARTED = "tunefleet: runs that do not start are crashed"
RETRY = "tunefleet: crashed runs are started again"

CRASHED = "prefect.flow-run.Crashed"
LIFE = {
    "prefect.flow-run." + sign
    for sign in (
        *("heartbeat", "Scheduled", "Late", "AwaitingRetry", "AwaitingConcurrencySlot", "Pending", "Submitting"),
        *("InfrastructurePending", "Running", "Retrying", "Paused", "Suspended", "Resuming"),
        *("Cancelling", "Cancelled", "Completed", "Failed", "TimedOut"),
    )
}
EACH_RUN = {"prefect.resource.id"}
EACH_START = {"prefect.resource.id", "prefect.run-count"}  # heartbeats and signs of life bear no count, or another one
A_DAY, A_MINUTE = timedelta(days=1), timedelta(minutes=1)
SILENT_AFTER, START_WITHIN = timedelta(minutes=10), timedelta(minutes=30)


def ensure_automations(
    *,
    silent_after: timedelta = SILENT_AFTER,
    start_within: timedelta | None = None,
    retries: int = 3,
    retried: Sequence[str] = RETRIED,
) -> list[str]:
    """Create or update the automations on the server of PREFECT_API_URL; returns what each does, in a line.

    `silent_after` has to be longer than the API may be away: a living run whose heartbeats are not heard is started a
    second time (which costs a slot, not the result: the second waits at the store for what the first is doing).
    `start_within` has to be longer than pulling an image takes, or waiting in a queue that keeps pods back; None leaves
    what the server has, at first 30 minutes. A crashed run of the flows `retried` is started again
    up to `retries` times. An automation that somebody paused stays paused.
    """
    _check(silent_after, start_within, retries)
    with get_client(sync_client=True) as client:
        wanted = [
            _silent(silent_after),
            _unstarted(start_within or _standing_within(client) or START_WITHIN),
            *([_retry(retries, retried)] if retries else []),
            *_told(find_places(client), retries, retried),
        ]
        for name in {RETRY, TELL} - {one.name for one in wanted}:
            for old in client.read_automations_by_name(name):
                client.delete_automation(old.id)
        for one in wanted:
            _ensure(client, one)
    return [f"{one.name.partition(': ')[2]}: {one.description}" for one in wanted]


def _standing_within(client: SyncPrefectClient) -> timedelta | None:
    """What somebody gave before, who knows how long runs wait here."""
    there = client.read_automations_by_name(UNSTARTED)
    trigger = there[-1].trigger if there else None  # the one that _ensure keeps
    return trigger.within if isinstance(trigger, EventTrigger) else None


def _check(silent_after: timedelta, start_within: timedelta | None, retries: int) -> None:
    faults = []
    if silent_after <= HEARTBEAT:
        faults.append(
            Fault(
                f"silent_after is {_spoken(silent_after)}; heartbeats come every {_spoken(HEARTBEAT)}: take more than "
                "that, as a rule several minutes."
            )
        )
    if start_within is not None and start_within < timedelta(seconds=10):
        faults.append(
            Fault(f"start_within is {_spoken(start_within)}; Prefect takes 10 s or more, and images take minutes.")
        )
    if retries < 0:
        faults.append(Fault(f"retries is {retries}; it is 0 (never start again) or more."))
    if faults:
        raise RequestError(faults)


def _silent(after: timedelta) -> AutomationCore:
    return AutomationCore(
        name=SILENT,
        description=f"no heartbeat for {_spoken(after)}",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            after={"prefect.flow-run.heartbeat"},
            expect=LIFE,
            within=after,
            for_each=EACH_RUN,
            **_watched(),
        ),
        actions=[_crash(f"No heartbeat for {_spoken(after)}: its process, or its machine, is gone.")],
    )


def _unstarted(within: timedelta) -> AutomationCore:
    return AutomationCore(
        name=UNSTARTED,
        description=f"submitted {_spoken(within)} ago and not running",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            after={"prefect.flow-run.Pending", "prefect.flow-run.Submitting"},
            expect=LIFE,
            within=within,
            for_each=EACH_RUN,
            **_watched(),
        ),
        actions=[_crash(f"Not started within {_spoken(within)}: the worker that took it is gone, or cannot start it.")],
    )


def _retry(retries: int, flows: Sequence[str]) -> AutomationCore:
    counts = [str(number) for number in range(retries + 1)]
    return AutomationCore(
        name=RETRY,
        description=f"{', '.join(flows)}, up to {retries} times each run",
        trigger=EventTrigger(
            posture=Posture.Reactive,
            expect={CRASHED},
            within=A_DAY,
            for_each=EACH_START,
            **_watched(flows=flows, counts=counts),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.SCHEDULED,
                name="AwaitingRetry",
                message="Crashed, and started again by tunefleet's automation.",
            )
        ],
    )


def _told(places: Sequence[Place], retries: int, flows: Sequence[str]) -> list[AutomationCore]:
    """No automation without a block that the server itself can use."""
    text = (
        "{{ flow.name }} crashed: run {{ flow_run.name }}, start {{ event.resource['prefect.run-count'] }}"
        f"{{% if flow.name in {list(flows)} %}} of at most {1 + retries}{{% endif %}}. "
        "{{ flow_run.state.message }} {{ flow_run | ui_url }}"
    )
    payload = f'{{% set text %}}{text}{{% endset %}}{{"event": "crashed", "text": {{{{ text | tojson }}}}}}'
    actions: list[Any] = []
    for place in places:
        if place.notifies:
            actions.append(SendNotification(block_document_id=place.id, subject="tunefleet: crashed", body=text))
        elif place.kind == "webhook":
            actions.append(CallWebhook(block_document_id=place.id, payload=payload))
    if not actions:
        return []
    return [
        AutomationCore(
            name=TELL,
            description=f"through the server's block {BLOCK}",
            trigger=EventTrigger(
                posture=Posture.Reactive,
                expect={CRASHED},
                within=A_MINUTE,
                for_each=EACH_START,
                **_watched(besides=PACKS),
            ),
            actions=actions,
        )
    ]


def _watched(*, flows: Sequence[str] = (), counts: Sequence[str] = (), besides: Sequence[str] = ()) -> dict[str, Any]:
    """What a trigger looks at: runs that bear our tag; of some flows, or all besides some; in some of their starts."""
    related: list[dict[str, Any]] = [{"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"}]
    if flows:
        related.append({"prefect.resource.role": "flow", "prefect.resource.name": list(flows)})
    related += [{"prefect.resource.role": "flow", "prefect.resource.name": f"!{flow}"} for flow in besides]
    match = {"prefect.resource.id": "prefect.flow-run.*"} | ({"prefect.run-count": list(counts)} if counts else {})
    return {"match": match, "match_related": related}


def _crash(message: str) -> ChangeFlowRunState:
    return ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=message)


def _ensure(client: SyncPrefectClient, wanted: AutomationCore) -> None:
    """By its name, which Prefect does not keep unique: the one that stood longest is updated, others go."""
    there = client.read_automations_by_name(wanted.name)  # those updated last come first
    if not there:
        client.create_automation(wanted)
        return
    *others, standing = there
    fields = wanted.model_dump(exclude={"owner_resource"}) | {"enabled": standing.enabled}
    client.update_automation(standing.id, AutomationCore(**fields))
    for one in others:
        client.delete_automation(one.id)


def _spoken(time: timedelta) -> str:
    seconds = time.total_seconds()
    return f"{seconds / 60:g} min" if seconds >= 60 else f"{seconds:g} s"
