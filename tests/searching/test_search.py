"""The search without training: real losses of settings, as formulas."""

import logging
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import OutOfMemoryError, StageError
from tasks.recipe.schema import Sweep
from tasks.searching.search import STARTUP, Pruned, Report, Settings, Trial, best, search

RATE = {"training.learning_rate": {"low": 1e-5, "high": 1e-1, "log": True}}
STEPS = (10, 20, 30)


def sweep(over: dict[str, Any] | None = None, **keys: Any) -> Sweep:
    return Sweep.model_validate({"sampler": "tpe", "over": over or RATE, **keys})


def bowl(_number: int, proposed: Settings, report: Report) -> float:
    """A loss with its minimum, 1, at a learning rate of 1e-3; it falls by as much at every step."""
    rate = proposed["training.learning_rate"]
    assert isinstance(rate, float)
    loss = 1 + (math.log10(rate) + 3) ** 2
    for left, step in enumerate(STEPS):
        report(step, loss + len(STEPS) - 1 - left)
    return loss


def settings_of(trials: list[Trial]) -> list[Settings]:
    return [trial.settings for trial in trials]


def test_the_same_seed_and_losses_give_the_same_trials():
    trials = search(sweep(n_trials=15), bowl, name="one")
    assert trials == search(sweep(n_trials=15), bowl, name="one")
    assert settings_of(trials) != settings_of(search(sweep(n_trials=15, seed=1), bowl, name="one"))
    assert [trial.number for trial in trials] == list(range(15))


def test_a_longer_search_begins_with_the_trials_of_a_shorter_one():
    assert search(sweep(n_trials=14), bowl, name="one")[:9] == search(sweep(n_trials=9), bowl, name="one")


def test_it_finds_the_minimum_better_than_its_random_start():
    for seed in range(3):
        trials = search(sweep(n_trials=30, seed=seed), bowl, name="one")
        (found,) = best(trials, 1)
        assert found.loss == min(trial.loss for trial in trials if trial.loss is not None)
        assert found.loss < best(trials[:STARTUP], 1)[0].loss
        assert found.loss < 1.05


def test_what_is_worse_than_half_of_the_others_is_pruned_and_trained_no_further():
    heard: dict[int, list[int]] = {}

    def watched(number: int, proposed: Settings, report: Report) -> float:
        def listening(step: int, loss: float) -> None:
            heard.setdefault(number, []).append(step)
            report(step, loss)

        return bowl(number, proposed, listening)

    trials = search(sweep(n_trials=20), watched, name="one")
    pruned = [trial for trial in trials if trial.state == "pruned"]
    assert pruned and all(trial.number >= STARTUP and trial.loss is None for trial in pruned)
    assert all(heard[trial.number][-1] == trial.step for trial in trials)
    assert any(trial.step != STEPS[-1] for trial in pruned)
    assert all(trial.step == STEPS[-1] for trial in trials if trial.state == "complete")


def test_report_raises_pruned_which_no_handler_of_this_projects_errors_catches():
    raised: list[bool] = []

    def train(number: int, _proposed: Settings, report: Report) -> float:
        try:
            report(10, float(number))
        except Pruned as error:
            raised.append(isinstance(error, StageError))
            raise
        return float(number)

    trials = search(sweep(n_trials=7), train, name="one")
    assert [trial.state for trial in trials] == ["complete"] * STARTUP + ["pruned"] * 2
    assert raised == [False, False]


@pytest.mark.filterwarnings("error")
def test_a_step_that_is_reported_again_is_not_looked_at_again():
    def train(number: int, _proposed: Settings, report: Report) -> float:
        report(10, 1.0)
        report(10, 100.0 + number)  # as after a restart
        return float(number)

    assert [trial.state for trial in search(sweep(n_trials=8), train, name="one")] == ["complete"] * 8


def test_a_trial_that_fails_is_recorded_and_does_not_end_the_search():
    def train(number: int, proposed: Settings, report: Report) -> float:
        if number in (0, 3):
            raise OutOfMemoryError("no memory left")
        return math.nan if number == 4 else bowl(number, proposed, report)

    trials = search(sweep(n_trials=6), train, name="one")
    assert [trial.number for trial in trials if trial.state == "failed"] == [0, 3, 4]
    assert trials[0] == Trial(0, trials[0].settings, "failed", None, None, "no memory left")
    assert trials[4].error == "its validation loss is nan" and trials[4].loss is None


def test_a_search_in_which_all_fail_is_an_error_with_the_reasons():
    def train(number: int, _proposed: Settings, _report: Report) -> float:
        raise OutOfMemoryError("no memory left" if number % 2 else "diverged")

    with pytest.raises(StageError, match="one: none of its 4 trials could be finished: diverged; no memory left"):
        search(sweep(n_trials=4), train, name="one")


def test_what_nobody_foresaw_ends_it():
    def train(_number: int, _proposed: Settings, _report: Report) -> float:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        search(sweep(n_trials=2), train, name="one")


def test_nothing_is_logged(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]):
    with caplog.at_level(logging.DEBUG):
        search(sweep(n_trials=2), bowl, name="one")
    assert capfd.readouterr() == ("", "")


@given(st.integers(0, 2**31), st.integers(1, 64), st.integers(1, 64))
@settings(max_examples=15, deadline=None)
def test_proposals_are_what_the_sweep_lists(seed: int, low: int, more: int):
    modules: list[Any] = [["q_proj", "v_proj"], "all-linear", None]
    over = {
        "lora.r": {"low": low, "high": low + more, "log": True},
        "lora.lora_alpha": {"low": low, "high": low + more},
        "lora.target_modules": modules,
        "lora.use_dora": [True, False],
    }

    def train(_number: int, proposed: Settings, _report: Report) -> float:
        rank, alpha = proposed["lora.r"], proposed["lora.lora_alpha"]
        assert type(rank) is int and low <= rank <= low + more
        assert type(alpha) is float and low <= alpha <= low + more
        assert proposed["lora.target_modules"] in modules and type(proposed["lora.use_dora"]) is bool
        return float(rank)

    assert len(search(sweep(over, n_trials=8, seed=seed), train, name="one")) == 8


def trial(number: int, rate: float, loss: float | None) -> Trial:
    return Trial(number, {"rate": rate}, "failed" if loss is None else "complete", loss, None)


@pytest.mark.parametrize(("keep", "numbers"), [(1, [3]), (2, [3, 0]), (3, [3, 0, 1]), (9, [3, 0, 1])])
def test_the_best_are_those_with_the_lowest_loss_and_different(keep: int, numbers: list[int]):
    trials = [trial(0, 1, 0.5), trial(1, 2, 0.5), trial(2, 3, None), trial(3, 4, 0.0), trial(4, 4, 0.0)]
    assert [one.number for one in best(trials, keep)] == numbers
