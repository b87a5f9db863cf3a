"""Sending a pack to the workers of the GPU pool, and waiting for its answer.

The answer in the store is what counts; Prefect's flow run only says whether it is still worth waiting. So the parent
may be stopped and started again (the idempotency key leads it back to the same flow run), the API may be away for a
while, and a flow run that was lost is replaced by the next attempt, which finds in the store what the last one had
finished.

A worker that dies with its machine tells nobody, and its flow run stays "running". But it held a claim in the store,
which nobody renews any more: then the flow run is marked as crashed, here and at once.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar, cast
from uuid import UUID

import httpx
from prefect import get_run_logger, task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelling, Crashed

from infra.claims import CLAIM_SECONDS
from infra.errors import Fault, IntegrityError, RequestError, StageError
from infra.launch import raise_if_interrupted
from infra.storage import Store
from tasks.gathering import each_result
from tasks.packs.pack import JOB, Answer, Job, Pack, job_of, read_answer
from tasks.retrying import STAGE
from tasks.runs import Run

DEPLOYMENTS = {"train": "train-pack/gpu", "evaluate": "evaluate-adapters/gpu"}
ATTEMPTS = 3  # flow runs of one pack that may be lost, for one parent
POLL_SECONDS = 3.0
SILENT_SECONDS = 1.5 * CLAIM_SECONDS  # without a claim; a flow run starts, and imports, before it has one
IDLE_SECONDS = 60.0  # in the queue, before somebody should look whether there is a worker
API_AWAY_SECONDS = 1800.0  # the packs go on without it; then something is wrong for good

T = TypeVar("T")


def check_workers(store: Store) -> None:
    """RequestError unless packs can be sent from here: a server, and the deployments that take them."""
    if not PREFECT_API_URL.value():
        raise RequestError(
            "workers need a Prefect server: set PREFECT_API_URL (docs/OPERATIONS.md), or run the recipe --on here."
        )
    faults = []
    with get_client(sync_client=True) as client:
        for name in DEPLOYMENTS.values():
            try:
                client.read_deployment_by_name(name)
            except ObjectNotFound:
                faults.append(Fault(f"there is no deployment {name} on {client.api_url}; run `tunefleet deploy`"))
            except httpx.HTTPError as error:
                raise RequestError(f"the Prefect server {client.api_url} does not answer: {error!r}") from error
    if faults:
        raise RequestError(faults)


def send_all(run: Run, packs: Sequence[Pack]) -> tuple[dict[str, Answer], dict[str, str]]:
    """({title: answer}, {title: why there is none}); their flow runs stand in the queue in this order."""
    for pack in packs:
        if not _whole_answer(run.store, job := job_of(pack)):
            _patiently(partial(_put_in_the_queue, run, job, 1))  # the same one that `send` asks for
    return each_result({pack.title: send.submit(run, pack) for pack in packs})


@task(name="send pack", task_run_name="send {pack.kind} pack: {pack.title}", **STAGE)
def send(run: Run, pack: Pack) -> Answer:
    """The answer to `pack`, from a worker or from the last time; StageError if it was lost ATTEMPTS times."""
    logger, job = get_run_logger(), job_of(pack)
    if known := _whole_answer(run.store, job):
        logger.info("%s: answered already (%s)", pack.title, job.place)
        return known
    old = read_answer(run.store, job.place)  # one that speaks of failures, or of what is gone: it is asked again
    ended: list[str] = []
    number = 0
    while len(ended) < ATTEMPTS:
        number += 1
        flow_run = _patiently(partial(_put_in_the_queue, run, job, number))
        if flow_run.state and flow_run.state.is_final():
            continue  # of an earlier parent
        logger.info("%s: sent as flow run %s (%s)", pack.title, flow_run.name, job.place)
        said = _wait(run.store, job, flow_run, old)
        answer = read_answer(run.store, job.place)
        if answer and answer != old:
            return _or_raise(answer)
        ended.append(f"{flow_run.name}: {said}")
        logger.warning("%s: no answer from %s", pack.title, ended[-1])
    raise StageError(f"{pack.title}: {ATTEMPTS} flow runs ended without an answer. {'; '.join(ended)}")


def _whole_answer(store: Store, job: Job) -> Answer | None:
    """The answer of an earlier run, if nothing failed in it and all that it speaks of is still there."""
    answer = read_answer(store, job.place)
    if answer is None or answer.error or answer.failed():
        return None
    try:
        for result in answer.results():
            store.verify(result.ref)
    except IntegrityError:
        return None
    return answer.found()


def _or_raise(answer: Answer) -> Answer:
    if answer.error:
        raise (RequestError if answer.request else StageError)(answer.error)
    return answer


def _put_in_the_queue(run: Run, job: Job, number: int) -> FlowRun:
    """The flow run of this attempt, which is made once, whoever asks."""
    run.store.write_json(f"{job.place}/{JOB}", job.model_dump(mode="json"))
    sent = run_deployment(
        DEPLOYMENTS[job.pack.kind],
        parameters={"store": run.store_uri, "pack": job.place},
        flow_run_name=f"{job.pack.kind} {job.pack.title}"[:120],
        idempotency_key=f"{job.place}-{number}",
        timeout=0,
    )
    return cast(FlowRun, sent)  # a coroutine only inside an event loop


def _wait(store: Store, job: Job, flow_run: FlowRun, old: Answer | None) -> str:
    """Until there is an answer, or none is to be expected any more; how the flow run ended, in words."""
    logger = get_run_logger()
    silent_since = idle_since = time.monotonic()
    told = False
    with get_client(sync_client=True) as client:
        while True:
            try:
                time.sleep(POLL_SECONDS)
                raise_if_interrupted()
            except BaseException:
                _cancel(client, flow_run.id)
                raise
            if (answer := read_answer(store, job.place)) and answer != old:
                return "answered"
            try:
                state = _patiently(partial(client.read_flow_run, flow_run.id)).state
            except ObjectNotFound:
                return "was deleted"
            now = time.monotonic()
            if state is None or state.is_scheduled() or state.is_pending():
                silent_since = now
                if now - idle_since > IDLE_SECONDS and not told:
                    told = True
                    logger.warning(
                        "%s: no worker has taken it for %.0f s. If all are busy, that is as it should be; `tunefleet "
                        "doctor` says whether any is online",
                        *(job.pack.title, IDLE_SECONDS),
                    )
                continue
            if state.is_final():
                return f"{state.name} {state.message or ''}".strip()
            if store.holder("packs", _key(job)):
                silent_since = now
            elif now - silent_since > SILENT_SECONDS:
                crashed: State[None] = Crashed(message=f"no sign of life from its worker for {SILENT_SECONDS:.0f} s")
                _patiently(partial(client.set_flow_run_state, flow_run.id, crashed, force=True))
                return str(crashed.message)


def _cancel(client: SyncPrefectClient, flow_run: UUID) -> None:
    """What nobody waits for any more shall not hold a GPU; finished parts are in the store."""
    try:
        client.set_flow_run_state(flow_run, Cancelling())
    except (httpx.HTTPError, ObjectNotFound):
        get_run_logger().warning("flow run %s could not be cancelled", flow_run)


def _key(job: Job) -> str:
    return job.place.rpartition("/")[2]


def _patiently(ask: Callable[[], T]) -> T:
    """What `ask` returns, asked again for as long as the API may be away."""
    until = time.monotonic() + API_AWAY_SECONDS
    while True:
        try:
            return ask()
        except (httpx.TransportError, PrefectHTTPStatusError) as error:
            status = error.response.status_code if isinstance(error, PrefectHTTPStatusError) else 503
            if status < 500 or time.monotonic() > until:
                raise
            get_run_logger().warning("the Prefect API does not answer (%r); the packs go on", error)
            time.sleep(POLL_SECONDS)
            raise_if_interrupted()
