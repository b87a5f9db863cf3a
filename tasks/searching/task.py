"""Searching the settings of one adapter: each trial is trained by the train task, so each is cached by itself.

There is no task around the whole search and nothing of it is stored: run again, it asks for the same trials in the
same order, and those that were finished come out of the store with the losses that they reported. A pruned trial has
no artifact; run again, it is trained once more (from its last checkpoint, if it left one) until it is pruned.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from tasks.artifacts import StageResult
from tasks.recipe.schema import Adapter
from tasks.recipe.sweeps import trial_name, with_settings
from tasks.searching.search import Report, Settings, best, search


def search_adapter(
    adapter: Adapter, train_one: Callable[[Adapter, Report], StageResult]
) -> tuple[list[tuple[Adapter, StageResult]], list[dict[str, Any]]]:
    """The best trials of a resolved adapter with a tpe sweep, each an adapter of its own, and a JSON record of all.

    `train_one(adapter, report)` trains; while it does, it may call `report(step, validation loss)`, and lets Pruned
    through. Its result's facts hold "validation_loss" and the "curve" with a point for each loss on the way. These are
    reported again when it is done, because a result from the store, or one resumed, was not listened to as it was made.
    StageError if no trial could be finished.
    """
    sweep = adapter.sweep
    assert sweep, "the adapter has no sweep"
    done: dict[int, tuple[Adapter, StageResult]] = {}

    def train_trial(number: int, settings: Settings, report: Report) -> float:
        trial = with_settings(adapter, settings, name=trial_name(adapter.name, number))
        result = train_one(trial, report)
        for point in result.facts["curve"]:
            if "validation_loss" in point:
                report(point["step"], point["validation_loss"])
        done[number] = trial, result
        return result.facts["validation_loss"]

    trials = search(sweep, train_trial, name=adapter.name)
    kept = [trial.number for trial in best(trials, sweep.keep)]
    records = [
        {"name": trial_name(adapter.name, trial.number), "kept": trial.number in kept, **asdict(trial)}
        for trial in trials
    ]
    return [done[number] for number in kept], records
