"""Searching one adapter: trials are adapters, cached ones replay, and the records say what came of each."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from infra.errors import OutOfMemoryError, StageError
from tasks.artifacts import StageResult
from tasks.caching import Work
from tasks.recipe.loading import prepared
from tasks.recipe.schema import Adapter, Recipe
from tasks.runs import new_run
from tasks.searching.search import STARTUP, Report
from tasks.searching.task import search_adapter

STEPS = (10, 20, 30)


def searched(**sweep: Any) -> Adapter:
    content = {
        "name": "fleet",
        "training": {"max_steps": 30, "eval_steps": 10},
        "lora": {"lora_alpha": 32},
        "adapters": [
            {
                "name": "one",
                "method": "lora",
                "data": {"rows": [{"prompt": "a", "completion": "b"}], "validation": 1},
                "sweep": {
                    "sampler": "tpe",
                    "over": {
                        "training.learning_rate": {"low": 1e-5, "high": 1e-1, "log": True},
                        "lora.r": [4, 8],
                    },
                    "n_trials": 12,
                    **sweep,
                },
            }
        ],
    }
    return prepared(Recipe.model_validate(content)).adapters[0]


class Trainer:
    """Keeps adapters in a real store, as training does; losses are a formula. `trained` says what it had to do."""

    def __init__(self, folder: Path) -> None:
        self.run = new_run(str(folder))
        self.trained: list[str] = []
        self.broken: set[str] = set()

    def __call__(self, adapter: Adapter, report: Report) -> StageResult:
        def make(_folder: Path, output: Path) -> dict[str, Any]:
            self.trained.append(adapter.name)
            if adapter.name in self.broken:
                raise OutOfMemoryError("no memory left")
            assert adapter.training and adapter.lora
            loss = 1 + (math.log10(adapter.training.learning_rate) + 3) ** 2 + 1 / adapter.lora.r
            curve: list[dict[str, float]] = [{"step": 0, "loss": 9.0}]
            for left, step in enumerate(STEPS):
                curve.append({"step": step, "validation_loss": loss + len(STEPS) - 1 - left})
                report(step, curve[-1]["validation_loss"])
            (output / "weights").write_text(str(loss))
            return {"validation_loss": loss, "curve": curve}

        spec = adapter.model_dump(mode="json", exclude={"name"})
        return self.run.once(Work("train", 1, "adapters", adapter.name, spec, {}), make)


@pytest.fixture
def train(tmp_path: Path) -> Trainer:
    return Trainer(tmp_path)


def test_the_best_trials_come_back_as_resolved_adapters(train: Trainer):
    adapter = searched(keep=2)
    kept, records = search_adapter(adapter, train)
    assert len(kept) == 2 and len(records) == 12
    losses = sorted(record["loss"] for record in records if record["loss"] is not None)
    assert [result.facts["validation_loss"] for _, result in kept] == losses[:2]
    for trial, result in kept:
        (record,) = [one for one in records if one["name"] == trial.name]
        assert record["kept"] and record["state"] == "complete" and record["step"] == 30
        assert result.ref.name == trial.name == f"one-trial{record['number']}"
        assert trial.sweep is None and trial.method == "lora" and trial.data == adapter.data
        assert trial.training.learning_rate == record["settings"]["training.learning_rate"]
        assert trial.lora.r == record["settings"]["lora.r"]
        assert (trial.lora.lora_alpha, trial.training.max_steps) == (32, 30)  # as the fleet has them
    assert sum(record["kept"] for record in records) == 2
    assert json.loads(json.dumps(records, allow_nan=False)) == records


def test_run_again_it_trains_only_what_was_pruned_and_answers_the_same(train: Trainer):
    adapter = searched()
    first = search_adapter(adapter, train)
    trained, train.trained = train.trained, []
    again = search_adapter(adapter, train)
    pruned = [record["name"] for record in first[1] if record["state"] == "pruned"]
    assert pruned, "choose another seed: this test wants a pruned trial"
    assert train.trained == pruned and len(trained) > len(pruned)
    assert again[1] == first[1]
    assert [(one.name, result.facts) for one, result in again[0]] == [(one.name, r.facts) for one, r in first[0]]
    assert all(result.cached for _, result in again[0])


def test_more_trials_later_reuse_those_that_were_done(train: Trainer):
    first = search_adapter(searched(n_trials=STARTUP + 1), train)[1]
    train.trained.clear()
    more = search_adapter(searched(n_trials=STARTUP + 4), train)[1]
    assert [record["settings"] for record in more[: len(first)]] == [record["settings"] for record in first]
    assert "one-trial0" not in train.trained


def test_a_trial_that_fails_is_in_the_records_with_its_reason(train: Trainer):
    train.broken = {"one-trial0", "one-trial2"}
    kept, records = search_adapter(searched(), train)
    assert [record["number"] for record in records if record["state"] == "failed"] == [0, 2]
    assert records[0]["error"] == "no memory left" and not records[0]["kept"]
    assert kept[0][0].name not in train.broken


def test_all_failed(train: Trainer):
    train.broken = {f"one-trial{number}" for number in range(12)}
    with pytest.raises(StageError, match="one: none of its 12 trials could be finished: no memory left"):
        search_adapter(searched(), train)
