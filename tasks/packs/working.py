"""The worker's side of a pack: do the job and leave the answer."""

import time
from collections.abc import Callable
from typing import Any

from prefect import get_run_logger

from infra.errors import RequestError, StaleWriterError, TransientError, TunefleetError
from infra.launch import raise_if_interrupted
from tasks.evaluation.catalogue import folder_digest
from tasks.packs.pack import ANSWER, JOB, Answer, EvaluatePack, Job, Pack, code_here, read_answer
from tasks.runs import Run, new_run

POLL_SECONDS = 1.0

Done = dict[str, Any]  # the field of Answer that the pack's kind fills


def work_on(store: str, place: str, known: str | None, do: Callable[[Run, Pack], Done]) -> None:
    """Do the job at `place` in `store` and write its answer; what may pass by itself, or is a bug, leaves none.

    `known` is the run id of an answer that is not enough; if there is another, nothing is left to do. The claim says to
    the parent that somebody is alive. Whoever finds it taken waits: the other one may be all but dead.
    """
    run, key = new_run(store), place.rpartition("/")[2]
    content = run.store.read_json(f"{place}/{JOB}")
    if content is None:
        raise RequestError(f"{store} has no {place}/{JOB}: packs are sent by `train-adapters` with run_on: workers.")
    while True:
        with run.store.held("packs", key, run_id=run.run_id) as is_mine:
            if is_mine:
                standing = read_answer(run.store, place)
                if standing and standing.run_id != known:
                    return
                answer = _answer(run, content, do)
                if (run.store.holder("packs", key) or {}).get("run_id") != run.run_id:
                    raise StaleWriterError(f"{place}: another worker took over while this one was not heard of.")
                run.store.write_json(f"{place}/{ANSWER}", answer.model_dump(mode="json"))
                return
        time.sleep(POLL_SECONDS)
        raise_if_interrupted()


def _answer(run: Run, content: dict[str, Any], do: Callable[[Run, Pack], Done]) -> Answer:
    # Before the job is read: other code may not understand it.
    if differ := _differences(content.get("code") or {}, code_here()):
        said = f"worker and run differ: {differ}. Give both the same commit and requirements, then `tunefleet deploy`."
        return Answer(run_id=run.run_id, error=said, request=True)
    pack = Job.model_validate(content).pack
    folder = pack.recipe.evaluation.include_path
    if isinstance(pack, EvaluatePack) and pack.suites != folder_digest(folder):
        said = f"evaluation.include_path: {folder} is not on the worker what it is where the run was started."
        return Answer(run_id=run.run_id, error=said, request=True)
    try:
        return Answer(run_id=run.run_id, **do(run, pack))
    except TransientError:
        raise
    except TunefleetError as error:
        get_run_logger().error("%s", error)
        return Answer(run_id=run.run_id, error=str(error), request=isinstance(error, RequestError))


def _differences(asked: dict[str, str | None], here: dict[str, str | None]) -> str:
    """What two machines do not have in common; a commit that nobody knows is not compared."""
    return ", ".join(
        f"{name} is {here.get(name)} on the worker, {asked.get(name)} in the run"
        for name in asked.keys() | here.keys()
        if asked.get(name) != here.get(name) and not (name == "commit" and None in (asked.get(name), here.get(name)))
    )
