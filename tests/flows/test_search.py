"""A search through the flow: trials are adapters, the best goes on; and a pruned training through the train task."""

import json
from pathlib import Path
from typing import Any

import pytest

from infra.storage import Store
from tasks.searching.search import Pruned
from tests.flows.recipes import QUESTIONS, write_tiny_recipe

pytestmark = pytest.mark.slow

DATA = {"rows": QUESTIONS, "held_out": 12, "validation": 4, "messages": {"user": "{{ question }}", "assistant": "ok"}}
TARGET = {"gain": 0.1, "max_new_tokens": 6}
TRAINING = {"max_steps": 40, "lr_scheduler_type": "constant", "eval_steps": 10}


def adapter(**changes: Any) -> dict[str, Any]:
    return {"name": "found", "data": DATA, "target": TARGET, "training": TRAINING, **changes}


def test_the_best_trial_goes_on_and_the_others_are_told(prefect_api: None, tiny_base: Path, tmp_path: Path) -> None:
    from flows.train_adapters import train_adapters

    over = {"training.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True}}
    sweep = {"sampler": "tpe", "n_trials": 3, "seed": 1, "over": over}
    recipe = write_tiny_recipe(tmp_path, tiny_base, adapters=[adapter(sweep=sweep)])
    summary = train_adapters(str(recipe), store=str(tmp_path / "store"))
    trials = summary["searches"]["found"]
    assert [trial["state"] for trial in trials] == ["complete"] * 3
    (kept,) = (trial for trial in trials if trial["kept"])
    assert kept["loss"] == min(trial["loss"] for trial in trials)
    (one,) = summary["adapters"]
    assert one["name"] == kept["name"] and one["train"]["validation_loss"] == kept["loss"]
    assert len(list((tmp_path / "store" / "adapters").iterdir())) == 3, "each trial is kept by itself"
    again = train_adapters(str(recipe), store=str(tmp_path / "store"))
    assert again["searches"] == summary["searches"] and again["cache"]["adapters"] == {"hits": 1, "misses": 0}


def test_a_pruned_training_ends_at_once_and_goes_on_from_where_it_was(
    prefect_api: None, tiny_base: Path, tmp_path: Path
) -> None:
    from prefect import flow

    from tasks.ingestion.task import import_base, ingest
    from tasks.recipe.loading import load_recipe
    from tasks.runs import new_run
    from tasks.training.task import train
    from tasks.training.work import train_work

    training = {**TRAINING, "eval_steps": 5, "save_steps": 5, "learning_rate": 5e-3}
    recipe = load_recipe(write_tiny_recipe(tmp_path, tiny_base, adapters=[adapter(training=training)]))
    run, (member,) = new_run(str(tmp_path / "store")), recipe.adapters
    heard: list[list[int]] = [[], []]

    def prune(step: int, loss: float) -> None:
        heard[0].append(step)
        if step >= 15:
            raise Pruned

    @flow
    def pruned_then_whole() -> Any:
        base, data = import_base(run, recipe.base), ingest(run, member)
        with pytest.raises(Pruned):
            train(run, member, base, data, per_device=1, on_validation=prune)
        kept = Path(Store(run.store_uri).root) / "work" / "checkpoints"
        key = train_work(member, base=base.ref.digest, data=data.ref.digest).key
        assert [path.name for path in kept.iterdir()] == [key]
        return train(run, member, base, data, per_device=1, on_validation=lambda step, loss: heard[1].append(step))

    result = pruned_then_whole()
    assert heard[0][-1] == 15, "nothing was heard after it was pruned"
    assert heard[1] == list(range(5, 45, 5)), "what was seen before the stop is told again"
    assert result.facts["steps"] == 40
    log = json.loads((Store(run.store_uri).fetch(result.ref) / "manifest.json").read_text())
    assert [p["step"] for p in log["facts"]["curve"] if "validation_loss" in p] == heard[1]
    assert not any((Path(run.store_uri) / "work" / "checkpoints").iterdir()), "nothing is left to resume"
