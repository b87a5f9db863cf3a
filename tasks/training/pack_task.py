"""Training a pack as a Prefect task: its adapters' claims, held one inside the other, around one process for all.

Claims are taken in the order of their keys, whatever the pack. So of two runs that want some of the same adapters one
waits for the other, and never each for the other; and what was made meanwhile is found. The innermost claim starts
the process; on the way out each adapter is completed, or fails, for itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.runtime import task_run

from infra.errors import StageError, TransientError, TunefleetError
from tasks.artifacts import StageResult
from tasks.retrying import STAGE
from tasks.runs import Run
from tasks.training.kept import forget
from tasks.training.out_of_memory import Facts, Outcome
from tasks.training.sharing import Member
from tasks.training.together import Claimed, train_together
from tasks.training.work import checkpoints_of, train_work

LONGEST = 100  # characters of a task run's name

Results = tuple[dict[str, StageResult], dict[str, TunefleetError]]  # by name: what was trained, why one was not


@dataclass(frozen=True)
class Pack:
    members: tuple[Member, ...]

    @property
    def title(self) -> str:
        names = ", ".join(one.name for one in self.members)
        return names if len(names) <= LONGEST else f"{names[:LONGEST]}… ({len(self.members)})"


@task(name="train", task_run_name="train {pack.title}", tags=["training"], **STAGE)
def train_pack(run: Run, pack: Pack, base: StageResult) -> Results:
    """The trained adapters; those that failed do not stop the others.

    TransientError if one of them may go through when tried again: those that are done are then found. Not at the last
    try, after which each has its own error.
    """
    done, lost = train_members(run, pack.members, base)
    if (task_run.run_count or 0) <= STAGE["retries"]:
        for error in lost.values():
            if isinstance(error, TransientError):
                raise error
    return done, lost


def train_members(
    run: Run,
    members: Sequence[Member],
    base: StageResult,
    on_validation: Callable[[int, float], None] | None = None,
) -> Results:
    """Those of `members` that are not in the store, trained in one process, and the others from the store.

    `on_validation(step, loss)` is for a member that is alone. What this project did not foresee is raised when the
    others are completed.
    """
    store, logger = run.store, get_run_logger()
    works = {one.name: train_work(one.adapter, base=base.ref.digest, data=one.data.ref.digest) for one in members}
    by_key = {works[one.name].key: one for one in members}  # of two that are the same but for their name, one
    done: dict[str, StageResult] = {}  # by key
    lost: dict[str, TunefleetError] = {}
    outcomes: dict[str, Outcome] = {}  # by name
    unforeseen: list[Exception] = []

    def go_on(waiting: Sequence[str], claimed: Sequence[Claimed]) -> None:
        """Claim those whose keys are `waiting`, and train them together with those that are claimed."""
        if not waiting:
            if untrained := [one for one in claimed if one.member.name not in outcomes]:
                outcomes.update(_trained(run, base, untrained, on_validation))
            return
        key, *rest = waiting
        member = by_key[key]
        work, has_gone_on = works[member.name], False

        def make(_: Path, output: Path) -> Facts:
            nonlocal has_gone_on
            has_gone_on = True
            outcomes.pop(member.name, None)  # asked for a second time, if another run took it over and left nothing
            go_on(rest, [*claimed, Claimed(member, work, output)])
            if member.name not in outcomes:
                raise StageError("it was not trained: see the error of its pack")
            outcome = outcomes[member.name]
            if isinstance(outcome, TunefleetError):
                raise outcome
            return outcome

        try:
            done[key] = run.once(work, make)
            forget(store, checkpoints_of(work), logger)  # the result is in the store; nothing will be resumed
        except TunefleetError as error:
            lost[key] = error
        except Exception as error:  # noqa: BLE001 - whatever it is, the claims around this one are to be completed
            unforeseen.append(error)
        if not has_gone_on:  # it was in the store
            go_on(rest, claimed)

    go_on(sorted(by_key), [])
    if unforeseen:
        raise unforeseen[0]
    by_name = {name: work.key for name, work in works.items()}
    return (
        {name: done[key] for name, key in by_name.items() if key in done},
        {name: lost[key] for name, key in by_name.items() if key not in done},
    )


def _trained(run: Run, base: StageResult, claimed: Sequence[Claimed], *more: Any) -> dict[str, Outcome]:
    """What came of each; the same of all, if they could not even be begun."""
    try:
        return train_together(run, base, claimed, *more)
    except TunefleetError as error:
        return dict.fromkeys((one.member.name for one in claimed), error)
