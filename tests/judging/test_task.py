"""From two sides' records in a store to a win rate in it: cached, told of itself, and without the key anywhere."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from prefect.logging import disable_run_logger

from infra.errors import RequestError, TransientError
from tasks.artifacts import StageResult
from tasks.caching import Work
from tasks.evaluation.records import write_records
from tasks.ingestion.task import import_base
from tasks.judging.task import judge_answers
from tasks.recipe.schema import Base, Gate, Recipe
from tasks.runs import Run, new_run
from tests.judging.chat_server import KEY, NAME, ChatServer, answers_in
from tests.tiny import save_tiny_base

BASE = {"1": "worse", "2": "better", "3": "same", "4": "worse"}
OWN = {"1": "better", "2": "worse", "3": "same", "4": "better"}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return new_run(str(tmp_path / "store"))


@pytest.fixture(autouse=True)
def outside_prefect() -> Iterator[None]:
    with disable_run_logger():
        yield


def recipe(base: str = "base/model", **judge: Any) -> Recipe:
    data = {"rows": [{"prompt": "a", "completion": "b"}]}
    content = {"base": {"model": base}, "evaluation": {"judge": judge}, "adapters": [{"name": "one", "data": data}]}
    return Recipe.model_validate({"name": "fleet", **content}).resolved()


def scores(run: Run, side: str, answers: Mapping[str, str], base: str = "digest of the base") -> StageResult:
    def make(_work: Path, output: Path) -> dict[str, Any]:
        rows = [
            {"doc_id": doc, "doc_digest": doc, "prompt": f"Question {doc}?", "response": answer}
            for doc, answer in answers.items()
        ]
        write_records(rows, output / "records.parquet")
        return {}

    return run.once(Work("score", 1, "scores", side, {"answers": dict(answers)}, {"base": base}), make)


def both(run: Run, **more: str) -> tuple[StageResult, StageResult]:
    return scores(run, "base", BASE, **more), scores(run, "one", OWN, **more)


def of(server: ChatServer, **changes: Any) -> Recipe:
    server.says = lambda text: "AB"[answers_in(text).index("better")]
    return recipe(endpoint=server.address, name=NAME, **changes)


def test_a_win_rate_with_its_documents_is_kept(run: Run, server: ChatServer):
    result = judge_answers.fn(run, of(server), "one", *both(run))
    facts = result.facts
    assert facts == facts | {"n": 4, "win_rate": 0.625, "wins": 2, "losses": 1, "ties": 1, "same": 1, "unreadable": 0}
    assert (facts["judge"], facts["judges_itself"]) == (NAME, False)
    assert 0 < facts["ci_low"] < 0.625 < facts["ci_high"] < 1
    rows = pq.read_table(run.store.fetch(result.ref) / "records.parquet").to_pylist()
    assert [(row["doc_id"], row["base_first"], row["adapter_first"], row["score"]) for row in rows] == [
        ("1", "adapter", "adapter", 1.0),
        ("2", "base", "base", 0.0),
        ("3", "same", "same", 0.5),
        ("4", "adapter", "adapter", 1.0),
    ]
    assert len(server.asked) == 6  # twice each but the same


def test_a_judge_with_a_favourite_place_tells_nothing(run: Run, server: ChatServer):
    found = of(server)
    server.says = lambda _: "A"
    facts = judge_answers.fn(run, found, "one", *both(run)).facts
    assert (facts["win_rate"], facts["wins"], facts["losses"], facts["swayed"]) == (0.5, 0, 0, 3)


def test_it_is_judged_once(run: Run, server: ChatServer):
    first = judge_answers.fn(run, of(server), "one", *both(run))
    count = len(server.asked)
    assert judge_answers.fn(run, of(server, api_key="ANOTHER"), "one", *both(run)).cached  # no key changes a verdict
    assert len(server.asked) == count
    for changed in (of(server, criteria="Which is kinder?"), of(server, limit=2)):
        again = judge_answers.fn(run, changed, "one", *both(run))
        assert not again.cached and again.ref.digest != first.ref.digest
    assert again.facts["n"] == 2
    bolder = of(server).model_copy(update={"gate": Gate(alpha=0.2)})  # the same verdicts, another interval
    assert judge_answers.fn(run, bolder, "one", *both(run)).facts["ci_low"] > first.facts["ci_low"]


def test_the_key_is_in_no_file(run: Run, server: ChatServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.key = KEY
    found = of(server)
    server.says = lambda _: f"A {KEY}"  # and even if the server repeats it
    judge_answers.fn(run, found, "one", *both(run))
    monkeypatch.setenv("OPENAI_API_KEY", f"wrong-{KEY}")
    with pytest.raises(RequestError) as error:
        judge_answers.fn(run, of(server, limit=2), "one", *both(run))
    assert KEY not in str(error.value)
    files = [path for path in Path(run.store.root).rglob("*") if path.is_file()]
    assert any(path.name == "records.parquet" for path in files)
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_a_judge_that_goes_away_is_worth_another_try(run: Run, server: ChatServer):
    server.failing = [(500, {})] * 100
    with pytest.raises(TransientError):
        judge_answers.fn(run, of(server), "one", *both(run))
    server.failing = []
    assert judge_answers.fn(run, of(server), "one", *both(run)).facts["n"] == 4


@pytest.mark.parametrize(
    ("base", "itself"),
    [
        ("acme/Some-Judge", True),
        ("/models/some-judge/", True),
        ("package://acme/Some-Judge.Q4_K_M.gguf", True),
        ("acme/Some-Judge-Instruct", False),
    ],
)
def test_a_judge_that_bears_the_name_of_the_base_is_told_of(
    run: Run, server: ChatServer, base: str, itself: bool, monkeypatch: pytest.MonkeyPatch
):
    said: list[str] = []
    monkeypatch.setattr(logging.getLogger("null"), "warning", lambda text, *values: said.append(text % values))
    facts = judge_answers.fn(run, of(server).model_copy(update={"base": Base(model=base)}), "one", *both(run)).facts
    assert facts["judges_itself"] is itself
    assert said == (["some-judge is the base itself, and models favour their own answers: take another judge"] * itself)


@pytest.mark.slow
def test_a_local_model_judges_and_is_known_by_its_content(run: Run, tmp_path: Path):
    folder, other = save_tiny_base(tmp_path / "judge"), save_tiny_base(tmp_path / "other", seed=1)
    base = import_base.fn(run, Base(model=str(folder))).ref.digest
    answers = both(run, base=base)
    result = judge_answers.fn(run, recipe(model=str(folder)), "one", *answers)
    assert (result.facts["n"], result.facts["unreadable"], result.facts["same"]) == (4, 0, 1)
    assert run.store.manifest(result.ref)["upstream"]["judge"] == base
    assert result.facts["judges_itself"]
    moved = folder.rename(tmp_path / "moved")
    assert judge_answers.fn(run, recipe(model=str(moved)), "one", *answers).cached
    result = judge_answers.fn(run, recipe(model=str(other)), "one", *answers)
    assert (result.cached, result.facts["judge"], result.facts["judges_itself"]) == (False, str(other), False)
