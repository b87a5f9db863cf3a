"""The parent's side of a pack, with a real Prefect server; the worker is played by the test."""

import threading
import time
from collections.abc import Callable, Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterIdempotencyKey
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.sorting import FlowRunSort
from prefect.logging import disable_run_logger
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled, Crashed, Failed, Running

from infra import launch
from infra.errors import RequestError
from infra.storage import Store
from tasks.packs import sending
from tasks.packs.pack import ANSWER, SENT, Answer, Pack, job_of
from tasks.runs import Run, new_run
from tests.operations.conftest import PrefectServer, free_port
from tests.packs.making import train_pack, trained, write_answer
from tests.packs.test_planner import fleet

pytestmark = pytest.mark.slow  # a server
SECONDS = 60  # for whatever must come in the end


class Clock:
    """The parent's: its seconds pass when the test says so. `turns` of waiting tell that it has looked around."""

    def __init__(self) -> None:
        self.now, self.turns = 1000.0, 0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        time.sleep(0.02)
        self.turns += 1

    def passes(self, seconds: float = 0) -> None:
        self.now += seconds
        before = self.turns
        until(lambda: self.turns >= before + 3)


def until(found: Callable[[], Any]) -> Any:
    """What `found` returns once it is something."""
    end = time.monotonic() + SECONDS
    while not (result := found()):
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.02)
    return result


@pytest.fixture(scope="session")
def deployed(prefect_server: PrefectServer) -> None:
    with temporary_settings({PREFECT_API_URL: prefect_server.api}), get_client(sync_client=True) as client:
        for name in ("train-pack", "evaluate-adapters"):
            client.create_deployment(client.create_flow_from_name(name), "gpu")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(sending, "time", clock := Clock())
    return clock


@pytest.fixture
def run(tmp_path: Path, deployed: None, use_server: PrefectServer, clock: Clock) -> Run:
    return new_run(str(tmp_path / "store"), on="workers")


@pytest.fixture
def play(run: Run, clock: Clock) -> Iterator["Play"]:
    play = Play(run, clock)
    yield play
    play.over.set()
    for parent in play.parents:
        parent.join(SECONDS)


class Parent(threading.Thread):
    """A run that sends packs and waits; `result()` is what it got."""

    def __init__(self, run: Run, packs: tuple[Pack, ...], over: threading.Event):
        @flow(name="parent")
        def parent() -> None:
            self.done = sending.send_all(run, packs)

        context = copy_context()
        context.run(launch._interrupted.set, over)
        super().__init__(target=lambda: context.run(parent), daemon=True)
        self.start()

    def result(self) -> tuple[dict[str, Answer], dict[str, str]]:
        self.join(SECONDS)
        return self.done


class Play:
    """What the parent's surroundings do: the workers, people, the store."""

    def __init__(self, run: Run, clock: Clock):
        self.run, self.store, self.clock = run, run.store, clock
        self.pack = train_pack(run)
        self.job = job_of(self.pack)
        self.key = self.job.place.rpartition("/")[2]
        self.over = threading.Event()
        self.parents: list[Parent] = []

    def parent(self, *packs: Pack) -> Parent:
        self.parents.append(Parent(self.run, packs or (self.pack,), self.over))
        return self.parents[-1]

    def flow_runs(self, *packs: Pack) -> list[FlowRun]:
        """Of all attempts, as they stand in the queue."""
        keys = [f"{job_of(pack).place}-{number}" for pack in packs or (self.pack,) for number in range(1, 9)]
        which = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=keys))
        with get_client(sync_client=True) as client:
            return client.read_flow_runs(flow_run_filter=which, sort=FlowRunSort.EXPECTED_START_TIME_ASC)

    def attempt(self, number: int) -> FlowRun:
        """The flow run of this attempt, once the parent waits for it."""

        def found() -> Any:
            sent = self.store.read_json(f"{self.job.place}/{SENT}")
            key = f"{self.job.place}-{number}"
            return sent and [one for one in self.flow_runs() if one.idempotency_key == key]

        flow_run = until(found)[0]
        self.clock.passes()
        return flow_run

    def ends(self, flow_run: FlowRun, state: State[Any] | None) -> None:
        """None: it is deleted."""
        with get_client(sync_client=True) as client:
            if state:
                client.set_flow_run_state(flow_run.id, state, force=True)
            else:
                client.delete_flow_run(flow_run.id)

    def state(self, flow_run: FlowRun) -> Any:
        return next(one.state for one in self.flow_runs() if one.id == flow_run.id)

    def answers(self, run_id: str, pack: Pack | None = None, **failed: str) -> Answer:
        pack = pack or self.pack
        answer = Answer(run_id=run_id, trained=trained(self.run, pack, **failed))
        write_answer(self.run, job_of(pack), answer)
        return answer


def test_a_whole_answer_is_taken_without_a_flow_run(play: Play) -> None:
    answer = play.answers("old")
    answers, lost = play.parent().result()
    assert (answers, lost) == ({"a0": answer.found()}, {})
    assert answers["a0"].trained and all(one.cached for one in answers["a0"].trained.trained.values())
    assert not play.flow_runs()


@pytest.mark.parametrize("why", ["a member failed", "nothing came of it", "damaged"])
def test_an_answer_that_is_not_whole_is_asked_for_again(play: Play, why: str) -> None:
    play.store.write_json(f"{play.job.place}/{SENT}", {"number": 1, "known": None})
    if why == "nothing came of it":
        write_answer(play.run, play.job, Answer(run_id="old", error="full"))
    else:
        old = play.answers("old", **({"a0": "full"} if why == "a member failed" else {}))
        for result in old.results():
            Path(result.ref.uri, "content.txt").write_text("damaged")
    parent = play.parent()
    second = play.attempt(2)
    assert second.parameters == {"store": play.run.store_uri, "pack": play.job.place, "known": "old"}
    new = play.answers("new")
    assert parent.result() == ({"a0": new}, {})
    assert len(play.flow_runs()) == 1


def test_a_new_answer_counts_even_with_a_failure_in_it(play: Play) -> None:
    parent = play.parent()
    play.attempt(1)
    answer = play.answers("new", a0="full")
    assert parent.result() == ({"a0": answer}, {})


@pytest.mark.parametrize("request_", [True, False])
def test_an_error_is_the_end_of_the_pack(play: Play, request_: bool) -> None:
    parent = play.parent()
    play.attempt(1)
    write_answer(play.run, play.job, Answer(run_id="new", error="wrong or full", request=request_))
    assert parent.result() == ({}, {"a0": "wrong or full"})
    assert len(play.flow_runs()) == 1


def test_a_second_parent_joins_the_flow_run(play: Play) -> None:
    first = play.parent()
    play.ends(play.attempt(1), Running())
    second = play.parent()
    until(lambda: second.is_alive() and play.flow_runs())
    answer = play.answers("new")
    for parent in (first, second):
        answers, lost = parent.result()
        assert not lost and answers["a0"].found() == answer.found()
    assert len(play.flow_runs()) == 1


@pytest.mark.parametrize("state", [Crashed(message="killed"), Failed(), None], ids=["crashed", "failed", "deleted"])
def test_a_lost_flow_run_is_followed_by_the_next(play: Play, state: State[Any] | None) -> None:
    parent = play.parent()
    play.ends(play.attempt(1), state)
    play.attempt(2)
    answer = play.answers("new")
    assert parent.result() == ({"a0": answer}, {})


def test_three_lost_flow_runs_are_the_end(play: Play) -> None:
    parent = play.parent()
    for number in (1, 2, 3):
        play.ends(play.attempt(number), Crashed(message=f"power cut {number}"))
    answers, lost = parent.result()
    assert not answers and all(f"train a0: Crashed power cut {number}" in lost["a0"] for number in (1, 2, 3))
    assert len(play.flow_runs()) == 3


def test_a_flow_run_that_a_person_cancels_is_not_sent_again(play: Play) -> None:
    parent = play.parent()
    play.ends(play.attempt(1), Cancelled())
    answers, lost = parent.result()
    assert not answers and "was cancelled" in lost["a0"]
    assert len(play.flow_runs()) == 1


def test_a_silent_worker_is_marked_as_crashed(play: Play, clock: Clock) -> None:
    parent = play.parent()
    first = play.attempt(1)
    assert play.store.claims.take("packs", play.key, "silent")
    clock.passes(10 * sending.SILENT_SECONDS)  # in the queue, nobody is silent
    play.ends(first, Running())
    clock.passes()
    clock.now += sending.SILENT_SECONDS + 1
    play.attempt(2)
    assert play.state(first).is_crashed() and "no sign of life" in play.state(first).message
    answer = play.answers("new")
    assert parent.result() == ({"a0": answer}, {})


def test_a_claim_that_changes_is_alive_whatever_time_its_worker_has(play: Play, clock: Clock) -> None:
    parent = play.parent()
    play.ends(first := play.attempt(1), Running())
    claim = play.store.claims.take("packs", play.key, "slow clock")
    assert claim
    for second in range(1, 5):
        play.store.claims.hold(claim, until=second)  # in 1970
        clock.passes()
        clock.passes(0.7 * sending.SILENT_SECONDS)
    assert play.state(first).is_running()
    answer = play.answers("new")
    assert parent.result() == ({"a0": answer}, {})
    assert len(play.flow_runs()) == 1


@pytest.mark.parametrize("answers_yet", [True, False])
def test_a_crashed_flow_run_is_waited_for_while_its_claim_lives(play: Play, clock: Clock, answers_yet: bool) -> None:
    parent = play.parent()
    first = play.attempt(1)
    claim = play.store.claims.take("packs", play.key, "alive")
    assert claim
    play.ends(first, Crashed(message="no heartbeat"))
    clock.passes()
    assert len(play.flow_runs()) == 1
    if not answers_yet:
        play.store.claims.hold(claim, until=0)
        play.attempt(2)
    answer = play.answers("new")
    assert parent.result() == ({"a0": answer}, {})
    assert len(play.flow_runs()) == (1 if answers_yet else 2)


def test_the_store_may_be_away_for_a_moment(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    read, times = Store.read_json, iter(range(12))

    def read_or_not(store: Store, path: str) -> Any:
        if path.endswith(ANSWER) and next(times, 1) % 2 == 0:
            raise ConnectionError("away")
        return read(store, path)

    monkeypatch.setattr(Store, "read_json", read_or_not)
    parent = play.parent()
    play.attempt(1)
    until(lambda: next(times, None) is None)
    answer = play.answers("new")
    assert parent.result() == ({"a0": answer}, {})
    assert len(play.flow_runs()) == 1


def test_flow_runs_stand_in_the_queue_in_the_order_of_the_packs(play: Play) -> None:
    members = fleet(*["lora"] * 6).adapters
    alone = [fleet("lora").model_copy(update={"adapters": (one,)}) for one in reversed(members)]
    packs = [train_pack(play.run, recipe) for recipe in alone]
    parent = play.parent(*packs)
    until(lambda: len(play.flow_runs(*packs)) == len(packs))
    assert [one.name for one in play.flow_runs(*packs)] == [f"train {pack.title}" for pack in packs]
    expected = {pack.title: play.answers("new", pack) for pack in packs}
    answers, lost = parent.result()
    assert not lost and {title: one.found() for title, one in answers.items()} == {
        title: one.found() for title, one in expected.items()
    }


# --- whether packs can be sent at all


def test_with_deployments_packs_can_be_sent(run: Run) -> None:
    with disable_run_logger():
        sending.check_workers(run.store)


@pytest.mark.parametrize(
    ("url", "said"), [(None, "set PREFECT_API_URL"), ("http://127.0.0.1:{port}/api", "does not answer")]
)
def test_without_a_server_packs_cannot_be_sent(
    run: Run, monkeypatch: pytest.MonkeyPatch, url: str | None, said: str
) -> None:
    monkeypatch.delenv("PREFECT_API_URL")
    settings = {PREFECT_API_URL: url and url.format(port=free_port())}
    with temporary_settings(settings), disable_run_logger(), pytest.raises(RequestError, match=said):
        sending.check_workers(run.store)


def test_deployments_that_are_missing_are_named_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "DEPLOYMENTS", {"train": "train-pack/none", "evaluate": "evaluate-adapters/none"})
    with disable_run_logger(), pytest.raises(RequestError, match=r"tunefleet deploy") as error:
        sending.check_workers(run.store)
    assert [name in str(error.value) for name in ("train-pack/none", "evaluate-adapters/none")] == [True, True]
