"""Exact resume: a training that is killed again and again ends in the same bytes as one that was left alone."""

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra import stage_process
from infra.errors import PreemptedError
from tasks.ingestion.dataset import build_dataset
from tasks.recipe.schema import Data
from tasks.training import checkpoints
from tests.training.jobs import training_job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

KILLS = 10
STEPS = 24
# Everything that could go wrong with a resume: dropout, several epochs, accumulation, a schedule, validation.
DEMANDING = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.2,
    "eval_steps": 5,
    "load_best_model_at_end": True,
    "save_steps": 2,
    "lora": {"lora_dropout": 0.2},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rows = tuple({"n": "x" * (number % 7), "a": f"no {number}"} for number in range(20))
    spec = Data(
        rows=rows, held_out=0, validation=6, messages={"user": "Question {{ n }} {{ a }}", "assistant": "{{ a }}"}
    )
    build_dataset(spec, folder, needs_held_out=False)
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[dict[str, Any], Path], Any]]:
    """Starts a training in a process of its own, forked from one that has imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tasks.training.train"])

    def start_one(job: dict[str, Any], folder: Path) -> Any:
        folder.mkdir(parents=True, exist_ok=True)
        stage_process.hand_over(job, folder)
        process = context.Process(target=_stage, args=(str(folder),))
        process.start()
        return process

    yield start_one


def _stage(folder: str) -> None:
    """What `python -m tasks.training job.json` does, with its output in a file."""
    from tasks.training.__main__ import run

    out = os.open(f"{folder}/log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    stage_process.main(run, [f"{folder}/job.json"])


def steps_seen(folder: Path) -> int:
    """The last step that any attempt reported."""
    log = (folder / "log.txt").read_text() if (folder / "log.txt").exists() else ""
    events = [event for line in log.splitlines() if (event := stage_process.split_progress(line)[1])]
    return events[-1]["step"] if events else 0


def killed_at(process: Any, folder: Path, *, step: int, delay: float, number: int = signal.SIGKILL) -> bool:
    """Send the signal `delay` seconds after `step` was reported; whether it came before the end."""
    mark = (folder / "log.txt").stat().st_size if (folder / "log.txt").exists() else 0
    while process.is_alive():
        log = (folder / "log.txt").read_bytes()[mark:].decode() if (folder / "log.txt").exists() else ""
        events = [event for line in log.splitlines() if (event := stage_process.split_progress(line)[1])]
        if events and events[-1]["step"] >= step:
            time.sleep(delay)
            os.kill(process.pid, number)
            break
        time.sleep(0.002)
    process.join()
    return process.exitcode != 0


def result(folder: Path) -> bytes:
    return (folder / "output" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"group_by_length": True, "load_best_model_at_end": False},
        {"job": {"method": "qlora"}, "early_stopping_patience": 2},
    ],
    ids=["lora", "by length", "qlora with early stopping"],
)
def test_killed_at_random_and_yet_the_same_bytes(
    base: Path, data: Path, tmp_path: Path, start: Callable[..., Any], changes: dict[str, Any]
) -> None:
    draw = random.Random(7)
    quiet, rough = tmp_path / "quiet", tmp_path / "rough"
    settings = {**DEMANDING, **changes}
    job = {name: training_job(base, data, tmp_path / name / "output", **settings) for name in ("quiet", "rough")}
    calm = start(job["quiet"], quiet)
    calm.join()
    assert calm.exitcode == 0, (quiet / "log.txt").read_text()

    kills = 0
    while kills < KILLS:
        reached = checkpoints.newest_whole(Path(job["rough"]["checkpoints"]))
        step = min((checkpoints.step_of(reached) if reached else 0) + draw.randint(1, 4), STEPS - 2)
        process = start(job["rough"], rough)
        if not killed_at(process, rough, step=step, delay=draw.uniform(0, 0.06)):
            break  # done before the signal came
        kills += 1
    if not (rough / "result.json").exists():
        last = start(job["rough"], rough)
        last.join()
        assert last.exitcode == 0, (rough / "log.txt").read_text()
    assert kills >= KILLS, f"only {kills} kills before the end"
    assert result(rough) == result(quiet)
    assert "going on after step" in (rough / "log.txt").read_text()
    calm_facts, rough_facts = (stage_process._read(folder / "result.json") for folder in (quiet, rough))
    for key in ("curve", "tokens", "steps", "loss", "validation_loss", "best_step", "stopped_early"):
        assert calm_facts[key] == rough_facts[key], key
    for facts in (calm_facts, rough_facts):  # seconds differ, but every step's are known
        assert [point["step"] for point in facts["pace"]] == list(range(1, facts["steps"] + 1))
        assert all(point["tokens_per_second"] > 0 for point in facts["pace"])


def test_sigterm_saves_a_checkpoint_first(base: Path, data: Path, tmp_path: Path, start: Callable[..., Any]) -> None:
    job = training_job(base, data, tmp_path / "run" / "output", **{**DEMANDING, "save_steps": None})
    folder = tmp_path / "run"
    assert killed_at(start(job, folder), folder, step=7, delay=0, number=signal.SIGTERM)
    with pytest.raises(PreemptedError, match=r"a checkpoint of step \d+ is saved"):
        stage_process.outcome(stage_process.EXIT_PREEMPTED, stage="training", folder=folder, log=[], rerun="")
    saved = checkpoints.newest_whole(Path(job["checkpoints"]))
    assert saved and 7 <= checkpoints.step_of(saved) < STEPS
    start(job, folder).join()
    quiet = training_job(base, data, tmp_path / "quiet" / "output", **{**DEMANDING, "save_steps": None})
    start(quiet, tmp_path / "quiet").join()
    assert result(folder) == result(tmp_path / "quiet"), "neither the stop nor how often is saved changes the result"


def test_a_damaged_checkpoint_is_passed_over(base: Path, data: Path, tmp_path: Path, start: Callable[..., Any]) -> None:
    job = training_job(base, data, tmp_path / "run" / "output", **DEMANDING)
    folder, keep = tmp_path / "run", Path(job["checkpoints"])
    killed_at(start(job, folder), folder, step=13, delay=0)
    newest, before = sorted(keep.glob("checkpoint-*"), key=checkpoints.step_of, reverse=True)
    optimizer = newest / "optimizer.pt"
    content = bytearray(optimizer.read_bytes())
    content[len(content) // 2] ^= 1
    optimizer.write_bytes(content)
    assert checkpoints.newest_whole(keep) == before
    (before / "rng_state.pth").unlink()
    assert checkpoints.newest_whole(keep) is None
    start(job, folder).join()
    quiet = training_job(base, data, tmp_path / "quiet" / "output", **DEMANDING)
    start(quiet, tmp_path / "quiet").join()
    assert result(folder) == result(tmp_path / "quiet")
