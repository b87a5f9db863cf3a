"""Training several adapters in one process (tasks/training/packed): from their claims to what came of each.

Each keeps its checkpoints under its own stage key, so it goes on from them in whatever company, or alone.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prefect import get_run_logger

from infra.errors import DivergedError, RequestError, StageError, TunefleetError
from infra.gpus import CPU, device_slot
from infra.hashing import SHORT, digest_json
from infra.settings import scratch_folder
from tasks.artifacts import StageResult
from tasks.caching import Work
from tasks.runs import Run, child
from tasks.training.kept import Kept
from tasks.training.launching import device_environment
from tasks.training.out_of_memory import Facts, Outcome, in_halves, unless_killed, within_memory
from tasks.training.progress import Progress
from tasks.training.sharing import Member
from tasks.training.work import checkpoints_of, exactly_like

ERRORS: dict[str, type[TunefleetError]] = {"diverged": DivergedError, "failed": StageError, "bad_input": RequestError}


@dataclass(frozen=True)
class Claimed:
    """A member that nobody else trains just now, and the folder for its adapter."""

    member: Member
    work: Work
    output: Path


def train_together(
    run: Run,
    base: StageResult,
    claimed: Sequence[Claimed],
    on_validation: Callable[[int, float], None] | None = None,
) -> dict[str, Outcome]:
    """What came of each, by name; all are of one precision. They have a whole device for as long as it takes."""
    logger, store = get_run_logger(), run.store
    with device_slot(1, on_wait=logger.info) as device:
        job = {
            "base": str(store.fetch(base.ref)),
            "base_name": base.facts["model"],
            "device": CPU if device == CPU else "cuda:0",
            "quantization": "nf4" if claimed[0].member.adapter.method == "qlora" else "none",
        }
        process = _Process(run, job, device_environment(device, 1), claimed, on_validation)
        return in_halves([one.member.name for one in claimed], process.train, tell=logger.warning)


class _Process:
    """The process of a pack, started once or more: with all members, or with some of them."""

    def __init__(
        self,
        run: Run,
        job: Facts,
        environment: Mapping[str, str],
        claimed: Sequence[Claimed],
        on_validation: Callable[[int, float], None] | None,
    ):
        self._run, self._job, self._environment, self._log = run, job, environment, get_run_logger()
        self._claimed = {one.member.name: one for one in claimed}
        self._progress = {name: Progress(name, on_validation) for name in self._claimed}
        self._data = {name: str(run.store.fetch(one.member.data.ref)) for name, one in self._claimed.items()}
        self._like = exactly_like("packed")

    def train(self, names: Sequence[str]) -> dict[str, Outcome]:
        """What came of these; OutOfMemoryError for several, where one alone tries smaller batches first."""
        settings = {name: self._settings(name) for name in names}
        if len(names) == 1:
            return {names[0]: self._alone(names[0], settings[names[0]])}

        def saved() -> list[int]:
            return [self._saved_step(name, one["per_device_train_batch_size"]) for name, one in settings.items()]

        return unless_killed(partial(self._start, settings), saved=saved, tell=self._log.warning)

    def _alone(self, name: str, settings: Facts) -> Facts:
        def attempt(training: Facts) -> Facts:
            outcome = self._start({name: training})[name]
            if isinstance(outcome, TunefleetError):
                raise outcome
            return outcome

        saved_step = partial(self._saved_step, name)
        return within_memory(attempt, settings, saved_step=saved_step, tell=self._log.warning)

    def _start(self, trainings: Mapping[str, Facts]) -> dict[str, Outcome]:
        """What came of those in `trainings`, by name with their settings, in one process."""
        batches = {self._claimed[name].work.key: one["per_device_train_batch_size"] for name, one in trainings.items()}
        folder = scratch_folder(self._run.store) / self._run.run_id / f"pack-{digest_json(batches)[:SHORT]}"
        with ExitStack() as stack:
            for name, training in trainings.items():
                here = self._kept(name, training["per_device_train_batch_size"])
                here.fetch()
                stack.enter_context(here.sent())
            done = child(
                "tasks.training.packed",
                {**self._job, "members": [self._member(name, training) for name, training in trainings.items()]},
                folder,
                on_line=self._log.debug,
                on_progress=lambda event: self._progress[event["name"]].show(event),
                env=self._environment,
            )["members"]
        outcomes = {name: _outcome(done[name]) for name in trainings}
        if not any(isinstance(one, TunefleetError) for one in outcomes.values()):  # else it stays for a look
            shutil.rmtree(folder)
        return outcomes

    def _member(self, name: str, training: Facts) -> dict[str, Any]:
        """The member's part of the job, with an empty folder for its adapter."""
        adapter, output = self._claimed[name].member.adapter, self._claimed[name].output
        assert adapter.lora, "the recipe was not resolved"
        shutil.rmtree(output)
        output.mkdir()
        return {
            "name": name,
            "method": adapter.method,
            "lora": adapter.lora.model_dump(mode="json"),
            "training": training,
            "data": self._data[name],
            "checkpoints": str(self._kept(name, training["per_device_train_batch_size"]).folder),
            "output": str(output),
        }

    def _settings(self, name: str) -> Facts:
        training = self._claimed[name].member.adapter.training
        assert training, "the recipe was not resolved"
        return training.model_dump(mode="json")

    def _kept(self, name: str, batch: int) -> Kept:
        place = f"{checkpoints_of(self._claimed[name].work)}/{self._like}-batch-{batch}"
        return Kept(self._run.store, place, self._log)

    def _saved_step(self, name: str, batch: int) -> int:
        return self._kept(name, batch).saved_step


def _outcome(facts: Facts) -> Outcome:
    if error := facts.get("error"):
        return ERRORS[error["kind"]](error["message"])
    return {**facts, "out_of_memory_at": []}
