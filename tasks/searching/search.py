"""A search for the best settings: Optuna's TPE proposes them one trial after the other, its median rule prunes.

TPE models which settings had low losses and draws the next ones there (Bergstra et al., "Algorithms for
Hyper-Parameter Optimization", 2011). The median rule (Golovin et al., "Google Vizier", 2017) ends a trial that is
worse at a step than half of the finished ones were at that step.

Nothing here trains. The same seed and the same losses lead to the same proposals, also with a larger `n_trials`: a
search that goes on longer begins with the trials that it had, and those are in the cache.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import JsonValue

from infra.errors import StageError, TunefleetError
from infra.hashing import canonical_json
from tasks.recipe.schema import Range, Sweep
from tasks.recipe.sweeps import number_kind

STARTUP = 5  # trials that are drawn at random before TPE models them, and finished before any is pruned

Settings = dict[str, JsonValue]  # {dotted key of the adapter: value}
Report = Callable[[int, float], None]  # (optimizer step, validation loss)


class Pruned(Exception):
    """The trial is not worth finishing: raised by `report`, to be let through by whatever trains."""


@dataclass(frozen=True)
class Trial:
    """What came of one proposal."""

    number: int
    settings: Settings
    state: Literal["complete", "pruned", "failed"]
    loss: float | None  # the validation loss that it ended with; none unless complete
    step: int | None  # the last one that reported a validation loss
    error: str | None = None


def search(sweep: Sweep, train_trial: Callable[[int, Settings, Report], float], *, name: str) -> list[Trial]:
    """The `sweep.n_trials` trials of adapter `name`, in their order; StageError if not one could be finished.

    `train_trial(number, settings, report)` returns the validation loss to minimise, and calls `report` with the ones
    on its way; a step that was reported before is not looked at again. A trial that fails does not end the search.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=sweep.seed, n_startup_trials=STARTUP),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP),
    )
    trials = [_trial(study, sweep, train_trial) for _ in range(sweep.n_trials)]
    if not best(trials, 1):
        reasons = "; ".join(dict.fromkeys(trial.error or trial.state for trial in trials))
        raise StageError(f"{name}: none of its {len(trials)} trials could be finished: {reasons}")
    return trials


def best(trials: list[Trial], keep: int) -> list[Trial]:
    """At most `keep` complete trials with the lowest losses, the best first; the same settings only once."""
    different: dict[str, Trial] = {}
    for trial in sorted((trial for trial in trials if trial.loss is not None), key=lambda trial: trial.loss or 0.0):
        different.setdefault(canonical_json(trial.settings), trial)
    return list(different.values())[:keep]


def _trial(study: Any, sweep: Sweep, train_trial: Callable[[int, Settings, Report], float]) -> Trial:
    from optuna.trial import TrialState

    asked = study.ask()
    settings = {key: _proposed(asked, key, tries) for key, tries in sweep.over.items()}
    seen: set[int] = set()

    def report(step: int, loss: float) -> None:
        if step not in seen:
            seen.add(step)
            asked.report(loss, step)
            if asked.should_prune():
                raise Pruned

    def record(state: Literal["complete", "pruned", "failed"], loss: float | None, error: str | None = None) -> Trial:
        return Trial(asked.number, settings, state, loss=loss, step=max(seen, default=None), error=error)

    try:
        loss = train_trial(asked.number, settings, report)
        if not math.isfinite(loss):
            raise StageError(f"its validation loss is {loss}")
    except Pruned:
        study.tell(asked, state=TrialState.PRUNED)
        return record("pruned", None)
    except TunefleetError as error:
        study.tell(asked, state=TrialState.FAIL)
        return record("failed", None, str(error))
    study.tell(asked, loss)
    return record("complete", loss)


def _proposed(asked: Any, key: str, tries: tuple[JsonValue, ...] | Range) -> JsonValue:
    if not isinstance(tries, Range):  # as JSON, because Optuna takes no lists as categories
        return json.loads(asked.suggest_categorical(key, [canonical_json(value) for value in tries]))
    if number_kind(key) is int:
        return asked.suggest_int(key, int(tries.low), int(tries.high), log=tries.log)
    return asked.suggest_float(key, tries.low, tries.high, log=tries.log)
