"""The claims of a pack: what is found, what is trained, who waits for whom. The store is real; no weight is trained."""

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from prefect.logging import disable_run_logger

from infra.claims import Claim
from infra.errors import DivergedError, PreemptedError, StageError
from tasks.recipe.loading import prepared
from tasks.recipe.schema import Recipe
from tasks.retrying import STAGE
from tasks.runs import Run, new_run
from tasks.training import pack_task
from tasks.training.out_of_memory import Outcome
from tasks.training.pack_task import Pack, train_members, train_pack
from tasks.training.sharing import Member
from tasks.training.together import Claimed
from tests.packs.making import artifact

DATA = {"rows": [{"q": "a", "a": "b"}], "held_out": 0, "messages": {"user": "{{ q }}", "assistant": "{{ a }}"}}
TARGET = {"splits": ["train"], "decides": "train"}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with disable_run_logger():
        yield new_run(str(tmp_path / "store"))


def members(run: Run, *names: str, seeds: Sequence[int] | None = None) -> list[Member]:
    """Adapters that differ by their seed."""
    adapters = [
        {"name": name, "data": DATA, "target": TARGET, "training": {"seed": seed}}
        for name, seed in zip(names, seeds or range(len(names)), strict=True)
    ]
    recipe = prepared(Recipe.model_validate({"name": "f", "method": "lora", "adapters": adapters}))
    return [Member(one, artifact(run, "rows")) for one in recipe.adapters]


class Trainings:
    """Stands in the place of the process: writes an adapter for each member, or nothing but what `ends` says of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.ends: dict[str, Outcome] = {}
        self.trained: list[list[str]] = []
        monkeypatch.setattr(pack_task, "train_together", self.train)

    def train(self, run: Run, base: Any, claimed: Sequence[Claimed], *_: Any) -> dict[str, Outcome]:
        names = [one.member.name for one in claimed]
        self.trained.append(sorted(names))
        time.sleep(0.2)  # others come meanwhile
        for one in claimed:
            (one.output / "adapter_model.safetensors").write_text(one.member.name)
        return {name: self.ends.get(name, {"loss": 1.0}) for name in names}


def test_one_process_trains_all_and_the_next_time_none(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    process, base, fleet = Trainings(monkeypatch), artifact(run, "base"), members(run, "a", "b", "c")
    done, lost = train_members(run, fleet, base)
    assert process.trained == [["a", "b", "c"]] and not lost
    for name, result in done.items():
        assert (run.store.fetch(result.ref) / "adapter_model.safetensors").read_text() == name
        assert result.facts == {"loss": 1.0} and not result.cached
    again, lost = train_members(run, fleet, base)
    assert len(process.trained) == 1 and not lost
    assert {name: (one.ref, one.cached) for name, one in again.items()} == {
        name: (one.ref, True) for name, one in done.items()
    }


@pytest.mark.parametrize("first", ["a", "b", "c", "a b", "b c", "a c"])
def test_only_what_is_missing_is_trained(run: Run, monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    process, base, fleet = Trainings(monkeypatch), artifact(run, "base"), members(run, "a", "b", "c")
    train_members(run, [one for one in fleet if one.name in first.split()], base)
    done, _ = train_members(run, fleet, base)
    assert process.trained[1] == sorted({"a", "b", "c"} - set(first.split()))
    assert {name for name, result in done.items() if result.cached} == set(first.split())


def test_what_failed_fails_alone_and_is_tried_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    process, base, fleet = Trainings(monkeypatch), artifact(run, "base"), members(run, "a", "b", "c")
    process.ends = {"b": DivergedError("the loss of b is nan")}
    done, lost = train_members(run, fleet, base)
    assert set(done) == {"a", "c"} and lost == process.ends
    process.ends = {}
    done, lost = train_members(run, fleet, base)
    assert process.trained == [["a", "b", "c"], ["b"]] and set(done) == {"a", "b", "c"} and not lost


def test_adapters_that_differ_by_their_names_alone_are_trained_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    process, fleet = Trainings(monkeypatch), members(run, "a", "b", "c", seeds=[0, 1, 0])
    done, _ = train_members(run, fleet, artifact(run, "base"))
    assert len(process.trained[0]) == 2 and done["a"].ref == done["c"].ref != done["b"].ref


def test_what_may_pass_is_raised_when_the_others_are_in_the_store(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    process, base, fleet = Trainings(monkeypatch), artifact(run, "base"), members(run, "a", "b", "c")
    process.ends = {"b": PreemptedError("asked to stop"), "c": DivergedError("the loss of c is nan")}
    with pytest.raises(PreemptedError):
        train_pack.fn(run, Pack(tuple(fleet)), base)
    process.ends = {"c": DivergedError("the loss of c is nan")}
    done, lost = train_pack.fn(run, Pack(tuple(fleet)), base)
    assert process.trained[1] == ["b", "c"] and set(done) == {"a", "b"} and set(lost) == {"c"}


def test_at_the_last_try_each_has_its_own_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    process, fleet = Trainings(monkeypatch), members(run, "a", "b", "c")
    process.ends = {"b": PreemptedError("asked to stop"), "c": DivergedError("the loss of c is nan")}
    monkeypatch.setenv("PREFECT__RUNTIME__TASK_RUN__RUN_COUNT", str(STAGE["retries"] + 1))
    done, lost = train_pack.fn(run, Pack(tuple(fleet)), artifact(run, "base"))
    assert set(done) == {"a"} and {name: str(error) for name, error in lost.items()} == {
        "b": "asked to stop",
        "c": "the loss of c is nan",
    }


def test_what_nobody_foresaw_loses_no_other_adapter(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    process, base, fleet = Trainings(monkeypatch), artifact(run, "base"), members(run, "a", "b", "c")
    once, completed = Run.once, []

    def breaks_first(self: Run, work: Any, make: Any) -> Any:
        result = once(self, work, make)
        completed.append(work.name)
        if len(completed) == 1:
            raise OSError("the disk is gone")
        return result

    monkeypatch.setattr(Run, "once", breaks_first)
    with pytest.raises(OSError, match="the disk is gone"):
        train_members(run, fleet, base)
    assert len(process.trained) == 1 and sorted(completed) == ["a", "b", "c"]


def test_a_process_that_cannot_be_begun_is_everybodys_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise StageError("no device")

    monkeypatch.setattr(pack_task, "train_together", refuse)
    done, lost = train_members(run, members(run, "a", "b"), artifact(run, "base"))
    assert not done and {name: str(error) for name, error in lost.items()} == {"a": "no device", "b": "no device"}


@pytest.mark.parametrize("second", ["b c", "c b a", "c d"])
def test_packs_that_share_adapters_wait_for_each_other_and_train_each_once(
    run: Run, monkeypatch: pytest.MonkeyPatch, second: str
) -> None:
    process, base = Trainings(monkeypatch), artifact(run, "base")
    fleet = {one.name: one for one in members(run, "a", "b", "c", "d")}
    meets = threading.Barrier(2)
    packs = [[fleet[name] for name in names.split()] for names in ("a b c", second)]
    found: list[Any] = [None, None]

    def train(number: int) -> None:
        with disable_run_logger():
            meets.wait()
            found[number] = train_members(run, packs[number], base)

    threads = [threading.Thread(target=train, args=(number,), daemon=True) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "each waits for the other"
    assert sorted(name for names in process.trained for name in names) == sorted({"a", "b", "c", *second.split()})
    for pack, (done, lost) in zip(packs, found, strict=True):
        assert set(done) == {one.name for one in pack} and not lost


def test_a_claim_that_another_run_took_over_fails_nobody(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """This run was not heard of for a while, and the one that took `b` over has ended without a result."""
    process, base, fleet = Trainings(monkeypatch), artifact(run, "base"), members(run, "a", "b", "c")

    def slow(run: Run, base: Any, claimed: Sequence[Claimed], *_: Any) -> dict[str, Outcome]:
        monkeypatch.setattr(pack_task, "train_together", process.train)
        (work,) = (one.work for one in claimed if one.member.name == "b")
        claims = run.store.claims
        claims.hold(Claim(work.stage, work.key, 1, run.run_id), until=0)
        taken_over = claims.take(work.stage, work.key, "another run")
        assert taken_over
        claims.hold(taken_over, until=0)
        return process.train(run, base, claimed)

    monkeypatch.setattr(pack_task, "train_together", slow)
    done, lost = train_members(run, fleet, base)
    assert process.trained == [["a", "b", "c"], ["b"]] and set(done) == {"a", "b", "c"} and not lost
