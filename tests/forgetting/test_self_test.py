"""The adapters that try the general tasks: trained beside the fleet, and no member of it."""

from pathlib import Path
from typing import Any

import pytest

from infra.errors import RequestError
from tasks.forgetting.self_test import AGAIN, NOISED, ONE_ANSWER, one_answer, sides
from tasks.recipe.contradictions import RESERVED
from tasks.recipe.loading import prepared
from tasks.runs import new_run
from tasks.training.fleet import TrainedFleet
from tasks.training.sharing import Member
from tests.packs.making import artifact
from tests.packs.test_planner import fleet


def test_each_precision_has_its_own_whose_name_no_recipe_can_have() -> None:
    own = [one_answer(precision, True, "packed") for precision in ("none", "nf4")]
    assert [one.method for one in own] == ["lora", "qlora"] and len({one.name for one in own}) == 2
    assert all(one.name.startswith(RESERVED) for one in own)
    for one in own:
        with pytest.raises(RequestError, match="begins with self-test-"):
            prepared(fleet("lora").model_copy(update={"adapters": (one,)}))


def test_one_that_could_not_be_trained_is_told_and_the_others_are_scored(tmp_path: Path) -> None:
    run = new_run(str(tmp_path / "store"))
    beside = {
        precision: Member(one_answer(precision, False, "packed"), artifact(run, "rows"))
        for precision in ("none", "nf4")
    }
    names = [member.name for member in beside.values()]
    trained = {names[0]: artifact(run, "trained")}
    rest: dict[str, Any] = {"data": {}, "transient": (), "searches": {}}
    done = TrainedFleet(recipe=fleet("lora"), trained=trained, failed={names[1]: "the loss is nan"}, **rest)
    found, failed = sides(beside, done)
    assert {precision: [test.side for test in tests] for precision, tests in found.items()} == {
        "none": [AGAIN, NOISED, ONE_ANSWER],
        "nf4": [AGAIN, NOISED],
    }
    assert found["none"][-1].adapter == trained[names[0]] and failed == {"nf4": "the loss is nan"}
