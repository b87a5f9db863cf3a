"""The worker's side of a pack: what it answers, and when it leaves no answer."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.logging import disable_run_logger

from infra.errors import OutOfMemoryError, RequestError, StaleWriterError, TransientError
from tasks.evaluation.catalogue import folder_digest
from tasks.packs import pack as pack_module
from tasks.packs import working
from tasks.packs.pack import ANSWER, JOB, Answer, Pack, code_here, job_of, read_answer
from tasks.recipe.schema import Recipe
from tasks.runs import Run, new_run
from tests.packs.making import evaluate_pack, evaluated, train_pack, trained, write_answer
from tests.packs.test_planner import fleet


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    monkeypatch.setattr(working, "POLL_SECONDS", 0.02)
    with disable_run_logger():
        yield new_run(str(tmp_path / "store"))


class Worker:
    """Works on a pack as a flow run would; `asked` are the packs that it was to do."""

    def __init__(self, run: Run, pack: Pack):
        self.run, self.job = run, job_of(pack)
        self.key = self.job.place.rpartition("/")[2]
        self.asked: list[Pack] = []
        self.write(self.job.model_dump(mode="json"))

    def write(self, content: dict[str, Any]) -> None:
        self.run.store.write_json(f"{self.job.place}/{JOB}", content)

    def work(self, known: str | None = None, error: Exception | None = None) -> Answer | None:
        def do(run: Run, pack: Pack) -> working.Done:
            self.asked.append(pack)
            if error:
                raise error
            if pack.kind == "train":
                return {"trained": trained(run, pack)}
            return {"evaluated": evaluated(run, pack)}

        working.work_on(self.run.store_uri, self.job.place, known, do)
        return self.answer

    @property
    def answer(self) -> Answer | None:
        return read_answer(self.run.store, self.job.place)


def with_own_tasks(folder: Path) -> Recipe:
    recipe = fleet("lora")
    return recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"include_path": str(folder)})})


@pytest.mark.parametrize("recipe", [fleet("lora", "qlora"), fleet("search")], ids=["two", "search"])
def test_a_trained_fleet_survives_the_store(run: Run, recipe: Recipe) -> None:
    worker = Worker(run, pack := train_pack(run, recipe))
    answer = worker.work()
    assert worker.asked == [worker.job.pack] and worker.job.pack.recipe == pack.recipe
    assert answer and answer.trained and answer.trained.recipe == pack.recipe
    assert answer.found() == Answer(run_id=answer.run_id, trained=trained(run, worker.job.pack)).found()


def test_scores_and_self_tests_survive_the_store(run: Run) -> None:
    worker = Worker(run, pack := evaluate_pack(run, suites=folder_digest(None)))
    answer = worker.work()
    assert worker.asked == [worker.job.pack]
    assert [test.role for test in worker.asked[0].self_tests] == [test.role for test in pack.self_tests]
    assert answer and answer.found().evaluated == Answer(run_id="", evaluated=evaluated(run, pack)).found().evaluated


@pytest.mark.parametrize("name", ["commit", "torch"])
@pytest.mark.parametrize("unknown", [{}, {"of_later": 1}], ids=["same fields", "fields of later code"])
def test_other_code_is_refused_before_the_job_is_read(run: Run, name: str, unknown: dict[str, Any]) -> None:
    worker = Worker(run, train_pack(run))
    content = worker.job.model_dump(mode="json")
    worker.write({**content, **unknown, "code": {**content["code"], name: "other"}})
    answer = worker.work()
    assert answer and answer.error and answer.request and not worker.asked
    assert f"{name} is {code_here()[name]} on the worker, other in the run" in answer.error


@pytest.mark.parametrize(("asked", "here"), [(None, "a"), ("a", None), (None, None)])
def test_a_commit_that_nobody_knows_is_not_compared(
    run: Run, monkeypatch: pytest.MonkeyPatch, asked: str | None, here: str | None
) -> None:
    worker = Worker(run, train_pack(run))
    content = worker.job.model_dump(mode="json")
    worker.write({**content, "code": {**content["code"], "commit": asked}})
    monkeypatch.setattr(working, "code_here", lambda: {**code_here(), "commit": here})
    answer = worker.work()
    assert answer and answer.trained


@pytest.mark.slow  # reads the YAML of tasks as lm-eval does
@pytest.mark.parametrize("there", ["same", "other", "missing"])
def test_the_users_own_tasks_must_be_the_same_on_the_worker(run: Run, tmp_path: Path, there: str) -> None:
    (folder := tmp_path / "tasks").mkdir()
    (folder / "own.yaml").write_text("task: own\n")
    worker = Worker(run, evaluate_pack(run, with_own_tasks(folder), suites=folder_digest(str(folder))))
    if there == "other":
        (folder / "own.yaml").write_text("task: another\n")
    if there == "missing":
        (folder / "own.yaml").unlink()
        folder.rmdir()
    answer = worker.work()
    assert answer
    if there == "same":
        assert answer.evaluated
    else:
        assert answer.error and str(folder) in answer.error and answer.request and not worker.asked


def test_what_may_pass_by_itself_leaves_no_answer(run: Run) -> None:
    worker = Worker(run, train_pack(run))
    with pytest.raises(TransientError):
        worker.work(error=TransientError("busy"))
    assert worker.answer is None
    assert run.store.holder("packs", worker.key) is None


@pytest.mark.parametrize(("error", "request_"), [(RequestError("wrong"), True), (OutOfMemoryError("full"), False)])
def test_other_errors_are_the_answer(run: Run, error: Exception, request_: bool) -> None:
    answer = Worker(run, train_pack(run)).work(error=error)
    assert answer and (answer.error, answer.request) == (str(error), request_)


@pytest.mark.parametrize(("known", "done_again"), [("first", True), (None, False), ("zeroth", False)])
def test_an_answer_is_done_again_only_if_it_is_the_known_one(run: Run, known: str | None, done_again: bool) -> None:
    worker = Worker(run, train_pack(run))
    write_answer(run, worker.job, Answer(run_id="first", error="full"))
    answer = worker.work(known)
    assert bool(worker.asked) == done_again
    assert answer and (answer.run_id != "first") == done_again


def test_a_second_worker_waits_and_finds_the_answer_of_the_first(run: Run) -> None:
    worker = Worker(run, train_pack(run))
    claim = run.store.claims.take("packs", worker.key, "first")
    assert claim
    second = threading.Thread(target=worker.work, daemon=True)
    second.start()
    second.join(0.3)
    assert second.is_alive() and not worker.asked
    write_answer(run, worker.job, Answer(run_id="first", error="full"))
    run.store.claims.hold(claim, until=0)
    second.join(60)
    assert not second.is_alive() and not worker.asked
    assert worker.answer and worker.answer.run_id == "first"


def test_a_worker_that_was_replaced_leaves_no_answer(run: Run) -> None:
    worker = Worker(run, train_pack(run))

    def do(_: Run, pack: Pack) -> working.Done:
        holder = run.store.holder("packs", worker.key)
        run.store.write_json(f"claims/packs/{worker.key}/2.json", {**(holder or {}), "run_id": "other"})
        return {"trained": trained(run, pack)}

    with pytest.raises(StaleWriterError, match="another worker took over"):
        working.work_on(run.store_uri, worker.job.place, None, do)
    assert worker.answer is None


def test_a_place_without_a_job_says_how_packs_are_sent(run: Run) -> None:
    with pytest.raises(RequestError, match=r"run_on: workers"):
        working.work_on(run.store_uri, "work/packs/train-0", None, lambda run, pack: {})


# --- the place


def marked(pack: Any, cached: bool) -> Any:
    changes = {"base": pack.base.model_copy(update={"cached": cached})}
    for field in {"data", "trained"} & pack.model_fields_set:
        changes[field] = {k: v.model_copy(update={"cached": cached}) for k, v in reversed(getattr(pack, field).items())}
    return pack.model_copy(update=changes)


@pytest.mark.parametrize("make", [train_pack, evaluate_pack])
def test_the_place_is_the_same_whether_references_were_found_or_made(run: Run, make: Any) -> None:
    pack = make(run, fleet("lora", "lora"))
    assert job_of(marked(pack, True)) == job_of(marked(pack, False))
    assert job_of(marked(pack, True)).place == job_of(marked(pack, False)).place


def test_the_place_is_another_if_anything_else_differs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    train, evaluate = train_pack(run), evaluate_pack(run)
    packs = [
        *(train, evaluate),
        train.model_copy(update={"data": {"a0": train.base}}),
        train_pack(run, fleet("qlora")),
        train_pack(run, fleet("lora", per_device=2)),
        evaluate.model_copy(update={"suites": "others"}),
        evaluate.model_copy(update={"look": 2}),
    ]
    places = [job_of(pack).place for pack in packs]
    monkeypatch.setattr(pack_module, "code_here", lambda: {"commit": "other"})
    places += [job_of(pack).place for pack in packs]
    assert len(set(places)) == len(places)


def test_an_answer_of_other_code_is_none(run: Run) -> None:
    job = job_of(train_pack(run))
    run.store.write_json(f"{job.place}/{ANSWER}", {"run_id": "r", "of_later": 1})
    assert read_answer(run.store, job.place) is None
