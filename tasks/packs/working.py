"""The worker's side of a pack: do the job and leave the answer."""

import time
from collections.abc import Callable
from typing import Any

from prefect import get_run_logger

from infra.errors import RequestError, TransientError, TunefleetError
from infra.launch import raise_if_interrupted
from tasks.caching import git_commit
from tasks.packs.pack import ANSWER, JOB, Answer, Job, Pack
from tasks.runs import Run, new_run

POLL_SECONDS = 1.0


Done = dict[str, Any]  # the field of Answer that the pack's kind fills


def work_on(store: str, place: str, do: Callable[[Run, Pack], Done]) -> None:
    """Do the job at `place` in `store` and write its answer; what may pass by itself, or is a bug, leaves none.

    The claim says to the parent that somebody is alive. Whoever finds it taken waits: the other one may be
    all but dead.
    """
    run = new_run(store)
    content = run.store.read_json(f"{place}/{JOB}")
    if content is None:
        raise RequestError(f"{store} has no {place}/{JOB}: packs are sent by `train-adapters` with run_on: workers.")
    job = Job.model_validate(content)
    while True:
        with run.store.held("packs", place.rpartition("/")[2], run_id=run.run_id) as is_mine:
            if is_mine:
                answer = _answer(run, job, do)
                run.store.write_json(f"{place}/{ANSWER}", answer.model_dump(mode="json"))
                return
        time.sleep(POLL_SECONDS)
        raise_if_interrupted()


def _answer(run: Run, job: Job, do: Callable[[Run, Pack], Done]) -> Answer:
    here = git_commit()
    if None not in (here, job.git_commit) and here != job.git_commit:
        said = f"the worker has commit {here}, the run {job.git_commit}; give both the same, then `tunefleet deploy`."
        return Answer(run_id=run.run_id, error=said, request=True)
    try:
        return Answer(run_id=run.run_id, **do(run, job.pack))
    except TransientError:
        raise
    except TunefleetError as error:
        get_run_logger().error("%s", error)
        return Answer(run_id=run.run_id, error=str(error), request=isinstance(error, RequestError))
