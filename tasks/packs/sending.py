"""Sending packs to the workers of the GPU pool, and waiting for their answers.

    pack -> attempt n: sent.json in the store, and a flow run whose idempotency key is the pack's place and n
         -> wait: an answer that is not the one known before   -> done
                  the flow run is over, or its worker silent   -> attempt n + 1

The answer in the store is what counts; Prefect's flow run only says whether it is still worth waiting. So the parent
may be stopped and started again (sent.json leads it back to the same flow run), and API or store may be away for a
while. What a lost attempt had finished, the next one finds in the store.

A worker that dies with its machine tells nobody, and its flow run stays "running". But it held a claim in the store,
which nobody renews any more: then the flow run is marked as crashed, here and at once. That is judged by this machine's
clock alone: a claim that goes on changing is alive, whatever time its worker has.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import httpx
from botocore.exceptions import BotoCoreError
from prefect import get_run_logger, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL
from prefect.states import Crashed

from infra.claims import CLAIM_SECONDS
from infra.errors import Fault, IntegrityError, RequestError, StageError
from infra.launch import raise_if_interrupted
from infra.storage import Store
from tasks.gathering import each_result
from tasks.packs.pack import JOB, SENT, Answer, Job, Pack, job_of, read_answer
from tasks.retrying import STAGE
from tasks.runs import Run

DEPLOYMENTS = {"train": "train-pack/gpu", "evaluate": "evaluate-adapters/gpu"}
ATTEMPTS = 3  # flow runs of one pack that may be lost, for one parent
POLL_SECONDS = 3.0
SILENT_SECONDS = 1.5 * CLAIM_SECONDS  # without a claim; a flow run starts, and imports, before it has one
IDLE_SECONDS = 60.0  # in the queue, before somebody should look whether there is a worker
AWAY_SECONDS = 1800.0  # of API or store; the packs go on meanwhile

T = TypeVar("T")


def check_workers(store: Store) -> None:
    """RequestError unless packs can be sent from here: a server, and the deployments that take them."""
    if store.is_local:
        get_run_logger().warning("%s is a folder: workers on other machines do not see it", store.root)
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
        job = job_of(pack)
        if not _is_whole(_patiently(partial(read_answer, run.store, job.place))):
            _patiently(partial(_queued, run, job, partial(_standing, run.store, job)))
    answers, errors = each_result({pack.title: answer_to.submit(run, pack) for pack in packs})
    return answers, {title: str(error) for title, error in errors.items()}


@task(name="send pack", task_run_name="send {pack.kind} pack: {pack.title}", **STAGE)
def answer_to(run: Run, pack: Pack) -> Answer:
    """The answer to `pack`, from a worker or from the last time; StageError if it was lost ATTEMPTS times."""
    logger, store, job = get_run_logger(), run.store, job_of(pack)
    if known := _patiently(partial(_verified, store, job)):
        logger.info("%s: answered already (%s)", pack.title, job.place)
        return known
    lost: list[str] = []
    attempt = _patiently(partial(_joined, store, job))
    while len(lost) < ATTEMPTS:
        flow_run = _patiently(partial(_queued, run, job, lambda: attempt))  # noqa: B023 - called at once
        logger.info("%s: sent as flow run %s (%s)", pack.title, flow_run.name, job.place)
        said = _wait(store, job, flow_run, attempt)
        if answer := _patiently(partial(_new_answer, store, job, attempt)):
            if answer.error:
                raise (RequestError if answer.request else StageError)(answer.error)
            return answer
        lost.append(f"{flow_run.name}: {said}")
        logger.warning("%s: no answer from %s", pack.title, lost[-1])
        attempt = {**attempt, "number": attempt["number"] + 1}
    raise StageError(f"{pack.title}: {ATTEMPTS} flow runs ended without an answer. {'; '.join(lost)}")


# --- answers


def _is_whole(answer: Answer | None) -> bool:
    return answer is not None and not answer.error and not answer.failed()


def _verified(store: Store, job: Job) -> Answer | None:
    """The answer of an earlier run, if nothing failed in it and all that it speaks of is still there."""
    answer = read_answer(store, job.place)
    if answer is None or not _is_whole(answer):
        return None
    try:
        for result in answer.results():
            store.verify(result.ref)
    except IntegrityError:
        return None
    return answer.found()


def _new_answer(store: Store, job: Job, attempt: dict[str, Any]) -> Answer | None:
    """The answer at the job's place, unless it is the one that was known when the attempt began."""
    answer = read_answer(store, job.place)
    return answer if answer and answer.run_id != attempt["known"] else None


# --- attempts: {"number", "known": run id of the answer that was there before}


def _standing(store: Store, job: Job) -> dict[str, Any]:
    """The attempt that has no answer yet; after one that has, the next."""
    sent, answer = store.read_json(f"{job.place}/{SENT}"), read_answer(store, job.place)
    if sent is None or (answer and answer.run_id != sent["known"]):
        return {"number": sent["number"] + 1 if sent else 1, "known": answer.run_id if answer else None}
    return dict(sent)


def _joined(store: Store, job: Job) -> dict[str, Any]:
    """The attempt that `send_all` began, or another parent; a new one if its answer turned out to be damaged."""
    sent, answer = store.read_json(f"{job.place}/{SENT}"), read_answer(store, job.place)
    return _standing(store, job) if sent is None or _is_whole(answer) else dict(sent)


def _queued(run: Run, job: Job, attempt: Callable[[], dict[str, Any]]) -> FlowRun:
    """The flow run of the attempt, which is made once, whoever asks; one that is over is followed by the next."""
    now = attempt()
    run.store.write_json(f"{job.place}/{JOB}", job.model_dump(mode="json"))
    while True:
        run.store.write_json(f"{job.place}/{SENT}", now)
        made = run_deployment(
            DEPLOYMENTS[job.pack.kind],
            parameters={"store": run.store_uri, "pack": job.place, "known": now["known"]},
            flow_run_name=f"{job.pack.kind} {job.pack.title}"[:120],
            idempotency_key=f"{job.place}-{now['number']}",
            timeout=0,
        )
        flow_run = cast(FlowRun, made)  # a coroutine only inside an event loop
        is_over = flow_run.state and flow_run.state.is_final() and not run.store.holder("packs", job.key)
        if not is_over or _new_answer(run.store, job, now):
            return flow_run
        now["number"] += 1


def _wait(store: Store, job: Job, flow_run: FlowRun, attempt: dict[str, Any]) -> str:
    """Until there is an answer, or none is to be expected any more; how the flow run ended, in words."""
    logger = get_run_logger()
    heard_at = idle_since = time.monotonic()
    heard: Any = None
    told = False
    with get_client(sync_client=True) as client:
        while not _patiently(partial(_new_answer, store, job, attempt)):
            try:
                state = _patiently(partial(client.read_flow_run, flow_run.id)).state
            except ObjectNotFound:
                return "was deleted"
            now, sign = time.monotonic(), _patiently(partial(store.claims.sign, "packs", job.key))
            if sign != heard or state is None or state.is_scheduled() or state.is_pending():
                heard, heard_at = sign, now
            if state and state.is_cancelled():
                raise StageError(f"{job.pack.title}: the flow run {flow_run.name} was cancelled.")
            if state and state.is_final() and not _patiently(partial(store.holder, "packs", job.key)):
                # The last thing that a worker does is to answer; it may have done so since this turn began.
                time.sleep(POLL_SECONDS)
                return f"{state.name} {state.message or ''}".strip()
            if now - heard_at > SILENT_SECONDS:
                crashed: State[None] = Crashed(message=f"no sign of life from its worker for {SILENT_SECONDS:.0f} s")
                _patiently(partial(client.set_flow_run_state, flow_run.id, crashed, force=True))
                return str(crashed.message)
            if state and state.is_scheduled() and now - idle_since > IDLE_SECONDS and not told:
                told = True
                logger.warning(
                    "%s: no worker has taken it for %.0f s. If all are busy, that is as it should be; `tunefleet "
                    "doctor` says whether any is online",
                    *(job.pack.title, IDLE_SECONDS),
                )
            time.sleep(POLL_SECONDS)
            raise_if_interrupted()  # the packs go on: the next run of the recipe finds them
    return "answered"


def _patiently(ask: Callable[[], T]) -> T:
    """What `ask` returns, asked again for as long as API and store may be away."""
    until = time.monotonic() + AWAY_SECONDS
    while True:
        try:
            return ask()
        except (httpx.TransportError, PrefectHTTPStatusError, BotoCoreError, ConnectionError, TimeoutError) as error:
            status = error.response.status_code if isinstance(error, PrefectHTTPStatusError) else 503
            if status < 500 or time.monotonic() > until:
                raise
            get_run_logger().warning("Prefect's API or the store does not answer (%r); the packs go on", error)
            time.sleep(POLL_SECONDS)
            raise_if_interrupted()
