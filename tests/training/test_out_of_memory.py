"""Running out of memory: half the adapters, half the rows, down to the floor; really, in a limited process."""

import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from infra.errors import DivergedError, KilledError, OutOfMemoryError, PreemptedError, StageError
from infra.launch import run_stage
from tasks.ingestion.dataset import build_dataset
from tasks.recipe.schema import Data, Training
from tasks.training.out_of_memory import Outcome, in_halves, unless_killed, within_memory
from tests.tiny import save_tiny_base
from tests.training.jobs import training_job


def fits(most: int, tried: list[tuple[int, int]]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def attempt(training: dict[str, Any]) -> dict[str, Any]:
        batch = training["per_device_train_batch_size"]
        tried.append((batch, training["gradient_accumulation_steps"]))
        if batch > most:
            raise OutOfMemoryError("no memory")
        return {"loss": 1.0}

    return attempt


def settings(**changes: Any) -> dict[str, Any]:
    return Training(per_device_train_batch_size=8, gradient_accumulation_steps=3, **changes).model_dump()


@pytest.mark.parametrize(
    ("most", "tried"),
    [(8, [(8, 3)]), (2, [(8, 3), (4, 6), (2, 12)]), (1, [(8, 3), (4, 6), (2, 12), (1, 24)])],
)
def test_rows_per_step_stay_the_same(most: int, tried: list[tuple[int, int]]) -> None:
    seen: list[tuple[int, int]] = []
    facts = within_memory(fits(most, seen), settings(), saved_step=lambda batch: 0, tell=lambda *_: None)
    assert seen == tried
    assert facts == {"loss": 1.0, "out_of_memory_at": [batch for batch, _ in tried[:-1]]}


@pytest.mark.parametrize(
    ("most", "changes", "message"),
    [
        (2, {"min_per_device_train_batch_size": 4}, "batches of 4 rows do not fit.*min_per_device_train_batch_size: 4"),
        (0, {}, "batches of 1 rows do not fit"),
    ],
)
def test_the_floor_is_an_error_that_says_what_to_do(most: int, changes: dict[str, int], message: str) -> None:
    with pytest.raises(OutOfMemoryError, match=message + ".*gradient_checkpointing: true, method: qlora"):
        within_memory(fits(most, []), settings(**changes), saved_step=lambda batch: 0, tell=lambda *_: None)


def test_other_errors_are_not_tried_again() -> None:
    def diverges(training: dict[str, Any]) -> dict[str, Any]:
        raise DivergedError("the loss is nan")

    with pytest.raises(DivergedError):
        within_memory(diverges, settings(), saved_step=lambda batch: 0, tell=lambda *_: None)


def test_a_killed_process_goes_on_with_the_same_batch_and_only_then_is_it_memory() -> None:
    saved = iter([5, 9, 9])  # the newest checkpoint when it was killed
    tried: list[int] = []

    def attempt(training: dict[str, Any]) -> dict[str, Any]:
        tried.append(training["per_device_train_batch_size"])
        if tried[-1] == 8:
            raise KilledError("killed")
        return {"loss": 1.0}

    facts = within_memory(attempt, settings(), saved_step=lambda batch: next(saved), tell=lambda *_: None)
    assert tried == [8, 8, 8, 4] and facts["out_of_memory_at"] == [8]


# --- packs

WEIGHTS = {"a": 1, "b": 1, "c": 1, "d": 3, "e": 9}  # what each takes of the memory


def pack_in(memory: int, tried: list[str], **ends: Exception) -> Callable[[Sequence[str]], dict[str, Outcome]]:
    """Trains packs in so much memory; `ends` are what a process ends with that trains the adapter of that name."""

    def attempt(names: Sequence[str]) -> dict[str, Outcome]:
        tried.append("".join(names))
        for name, error in ends.items():
            if name in names:
                raise error
        if sum(WEIGHTS[name] for name in names) > memory:
            raise OutOfMemoryError("no memory")
        return {name: {"loss": 1.0} for name in names}

    return attempt


@pytest.mark.parametrize(
    ("memory", "tried", "lost"),
    [
        (15, ["abcde"], ""),
        (13, ["abcde", "ab", "cde"], ""),
        (12, ["abcde", "ab", "cde", "c", "de"], ""),
        (9, ["abcde", "ab", "cde", "c", "de", "d", "e"], ""),
        (3, ["abcde", "ab", "cde", "c", "de", "d", "e"], "e"),
        (1, ["abcde", "ab", "a", "b", "cde", "c", "de", "d", "e"], "de"),
    ],
)
def test_a_pack_that_does_not_fit_is_trained_in_halves(memory: int, tried: list[str], lost: str) -> None:
    seen: list[str] = []
    told: list[str] = []
    done = in_halves("abcde", pack_in(memory, seen), tell=lambda text, *values: told.append(text % values))
    if memory == 13:
        assert told == ["out of memory with a, b, c, d, e together; going on with a, b, then c, d, e"]
    assert seen == tried and list(done) == list("abcde")
    assert "".join(name for name, outcome in done.items() if isinstance(outcome, OutOfMemoryError)) == lost


@pytest.mark.parametrize("error", [StageError("broken"), PreemptedError("asked to stop")])
def test_what_ends_one_half_does_not_end_the_other(error: Exception) -> None:
    done = in_halves("abcd", pack_in(4, seen := [], c=error), tell=lambda *_: None)
    assert seen == ["abcd"] and set(map(id, done.values())) == {id(error)}, "all were in that process"
    done = in_halves("abcde", pack_in(13, seen := [], b=OutOfMemoryError("no memory"), c=error), tell=lambda *_: None)
    assert done == {"a": {"loss": 1.0}, "b": done["b"], **dict.fromkeys("cde", error)}
    assert isinstance(done["b"], OutOfMemoryError)


def test_a_killed_pack_goes_on_for_as_long_as_anyone_gets_further() -> None:
    saved = iter([[5, 0], [5, 2], [5, 2]])  # the steps of two adapters when their process was killed
    kills = 0

    def attempt() -> None:
        nonlocal kills
        kills += 1
        raise KilledError("killed")

    with pytest.raises(KilledError):
        unless_killed(attempt, saved=lambda: next(saved), tell=lambda *_: None)
    assert kills == 3


@pytest.mark.slow
def test_a_process_that_really_runs_out_of_memory_starts_again_smaller(tmp_path: Path) -> None:
    base = save_tiny_base(tmp_path / "base")
    rows = tuple({"n": "n" * 1500 + str(number)} for number in range(256))
    spec = Data(rows=rows, held_out=0, messages={"user": "{{ n }}", "assistant": "ok"})
    (tmp_path / "data").mkdir()
    build_dataset(spec, tmp_path / "data", needs_held_out=False)
    told: list[str] = []

    def attempt(training: dict[str, Any]) -> dict[str, Any]:
        batch = training["per_device_train_batch_size"]
        output = tmp_path / f"output-{batch}"
        job = training_job(base, tmp_path / "data", output)
        limits = resource.getrlimit(resource.RLIMIT_DATA)
        # Enough for the libraries and some of the rows of 1,500 tokens, not for all at once.
        resource.setrlimit(resource.RLIMIT_DATA, (3 << 30, limits[1]))
        try:
            return run_stage(
                "tasks.training",
                {**job, "training": {**job["training"], **training, "gradient_checkpointing": False}},
                folder=tmp_path / f"work-{batch}",
                on_line=lambda line: None,
                env={"OMP_NUM_THREADS": "1"},
            )
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, limits)

    training = Training(per_device_train_batch_size=256, max_steps=1, max_length=2048).model_dump()
    facts = within_memory(
        attempt, training, saved_step=lambda batch: 0, tell=lambda text, *values: told.append(text % values)
    )
    assert facts["out_of_memory_at"][0] == 256 and facts["per_device_train_batch_size"] < 256
    assert facts["per_device_train_batch_size"] * facts["gradient_accumulation_steps"] == 256
    assert told[0] == "out of memory with 256 rows per forward pass; starting again with 128"
