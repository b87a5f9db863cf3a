"""The answers of packs joined: as if all had been done here. What `send_all` returns is made by the tests."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra.storage import ArtifactRef
from tasks.artifacts import StageResult
from tasks.packs import evaluating, training
from tasks.packs.pack import Answer, Pack
from tasks.recipe.schema import Recipe
from tasks.runs import Run, new_run
from tasks.training.fleet import TrainedFleet
from tasks.training.sharing import Member
from tests.packs.making import artifact, data_of, evaluated, trained
from tests.packs.test_planner import fleet

Reply = Callable[[Run, Any], Answer | str]  # a string is why the pack is lost


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return new_run(str(tmp_path / "store"), on="workers")


def replying(monkeypatch: pytest.MonkeyPatch, where: Any, reply: Reply) -> list[Pack]:
    """The packs that are sent from now on, each of which gets `reply`."""
    sent: list[Pack] = []

    def send_all(run: Run, packs: Sequence[Pack]) -> tuple[dict[str, Answer], dict[str, str]]:
        sent.extend(packs)
        said = {pack.title: reply(run, pack) for pack in packs}
        answers = {title: one for title, one in said.items() if isinstance(one, Answer)}
        return answers, {title: one for title, one in said.items() if isinstance(one, str)}

    monkeypatch.setattr(where, "send_all", send_all)
    return sent


def train(run: Run, recipe: Recipe, *beside: Member) -> TrainedFleet:
    known = {one.name: {"tokens": 1, "memory": {"cpu": 1}} for one in recipe.adapters}
    return training.train_all(run, recipe, artifact(run, "base"), data_of(run, recipe), known, beside)


def refs(results: dict[str, StageResult]) -> dict[str, ArtifactRef]:
    return {name: result.ref for name, result in results.items()}


def test_a_lost_train_pack_fails_its_members_only(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = fleet("lora", "prompt", "qlora", "lora", per_device=2)
    replying(
        monkeypatch,
        training,
        lambda run, pack: "lost" if "a0" in pack.title else Answer(run_id="w", trained=trained(run, pack)),
    )
    whole = train(run, recipe)
    assert whole.failed == {"a0": "lost", "a3": "lost"} and set(whole.trained) == {"a2"}
    assert whole.recipe == recipe and refs(whole.data) == refs(data_of(run, recipe))


def test_kept_trials_stand_in_the_place_of_the_member(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = fleet("lora", "search", "lora")

    def reply(run: Run, pack: Any) -> Answer:
        done = trained(run, pack)
        if pack.title == "a1":
            trials = tuple(pack.recipe.adapters[0].model_copy(update={"name": f"a1-{n}"}) for n in (2, 0))
            rows = {one.name: pack.data["a1"] for one in trials}
            kept = pack.recipe.model_copy(update={"adapters": trials})
            found = {one.name: artifact(run, f"adapter-{one.name}") for one in trials}
            done = replace(done, recipe=kept, data=rows, trained=found, searches={"a1": [{"trial": 0}]})
        return Answer(run_id="w", trained=done)

    replying(monkeypatch, training, reply)
    whole = train(run, recipe)
    assert [one.name for one in whole.recipe.adapters] == ["a0", "a1-2", "a1-0", "a2"]
    assert set(whole.data) == set(whole.trained) == {"a0", "a1-2", "a1-0", "a2"}
    assert whole.data["a1-0"].ref == data_of(run, recipe)["a1"].ref
    assert whole.searches == {"a1": [{"trial": 0}]}


@pytest.mark.parametrize("is_lost", [False, True])
def test_what_trains_beside_the_fleet_is_a_pack_of_its_own(
    run: Run, monkeypatch: pytest.MonkeyPatch, is_lost: bool
) -> None:
    recipe = fleet("lora", "lora", per_device=2)
    tested = Member(fleet("lora").adapters[0].model_copy(update={"name": "self-test-x"}), artifact(run, "rows-x"))
    sent = replying(
        monkeypatch,
        training,
        lambda run, pack: (
            "lost" if is_lost and pack.title == "self-test-x" else Answer(run_id="w", trained=trained(run, pack))
        ),
    )
    whole = train(run, recipe, tested)
    assert [pack.title for pack in sent] == ["a0, a1", "self-test-x"]
    assert whole.failed == ({"self-test-x": "lost"} if is_lost else {})
    assert set(whole.trained) == {"a0", "a1"} | (set() if is_lost else {"self-test-x"})
    assert whole.recipe == recipe and set(whole.data) == {"a0", "a1"}, "it is no member"


def test_prompts_only_are_not_trained(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = fleet("prompt", "prompt")
    sent = replying(monkeypatch, training, lambda run, pack: "not sent")
    whole = train(run, recipe)
    assert not sent and not whole.trained and not whole.failed
    assert whole.recipe == recipe and refs(whole.data) == refs(data_of(run, recipe))


def evaluate(run: Run, recipe: Recipe) -> tuple[Any, dict[str, str]]:
    members = {one.name: one for one in recipe.adapters}
    made = {one.name: artifact(run, f"adapter-{one.name}") for one in recipe.adapters if one.method != "prompt"}
    return evaluating.evaluate_all(
        *(run, recipe, "none"),
        members=members,
        base=artifact(run, "base"),
        data=data_of(run, recipe),
        trained=made,
    )


def scored(run: Run, pack: Any, **more: Any) -> Answer:
    return Answer(run_id="w", evaluated=evaluated(run, pack, **more))


@pytest.mark.parametrize(
    ("reply", "failed"),
    [
        (lambda run, pack: "lost" if pack.base_only else scored(run, pack), dict.fromkeys("01234", "lost")),
        (lambda run, pack: "lost" if "a4" in pack.members and not pack.base_only else scored(run, pack), {"4": "lost"}),
        (lambda run, pack: scored(run, pack, **({} if pack.base_only or "a1" not in pack.members else {"a1": "full"})),
         {"1": "full"}),
        (lambda run, pack: scored(run, pack, base="" if pack.base_only or "a4" in pack.members else "other"),
         dict.fromkeys("0123", "not those of another worker")),
    ],
    ids=["base lost", "pack lost", "member failed", "base differs"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["lora", "prompt"])
def test_scores_are_joined(
    run: Run, monkeypatch: pytest.MonkeyPatch, reply: Reply, failed: dict[str, str], method: str
) -> None:
    sent = replying(monkeypatch, evaluating, reply)
    scores, why = evaluate(run, fleet(*[method] * 5))
    assert set(why) == {f"a{number}" for number in failed}
    assert all(said in why[f"a{number}"] for number, said in failed.items())
    whole = {f"a{number}" for number in range(5)} - set(why)
    assert set(scores) == (whole | {"base"} if whole else set())
    assert sent[0].kind == "evaluate" and sent[0].base_only
