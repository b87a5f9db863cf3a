"""Two processes on the CPU train what one does: the launcher, gloo and DDP as they run on several GPUs.

Both get the same rows in the same steps: the sampler's order is cut into batches of 2, dealt out by turns, so step n
has rows 4n to 4n+3 either way. Each process divides its loss by the trained tokens of all (the trainer's
average_tokens_across_devices), so no token is weighed differently. What is left is rounding: rows are padded to the
longest of 2 instead of 4, and sums are made in another order. TOLERANCE bounds it, relative to the loss: seen were
7e-4 with a base in bfloat16, 2e-7 with weights in float32. With a mean over tokens in each process, and then
over processes, it would be up to 0.03: the rows' answers differ in length.

Only where the rows of an epoch do not fill its last step do the two differ: one process trains fewer rows there, two
fill up with rows from the epoch's start.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.errors import PreemptedError, StageError
from infra.launch import run_stage
from tasks.ingestion.dataset import build_dataset
from tasks.recipe.schema import Data
from tasks.training import checkpoints
from tasks.training.launching import launch_command, launch_environment
from tests.training.jobs import training_job

pytestmark = pytest.mark.slow
TOLERANCE = {"lora": 2e-3, "full": 2e-5}


def dataset(folder: Path, count: int, validation: int = 0) -> Path:
    rows = tuple({"n": str(n), "answer": "ok " * (1 + n * n % 11)} for n in range(count))
    spec = Data(
        rows=rows, held_out=0, validation=validation, messages={"user": "Question {{ n }}", "assistant": "{{ answer }}"}
    )
    folder.mkdir()
    build_dataset(spec, folder, needs_held_out=False)
    return folder


def job(base: Path, data: Path, output: Path, processes: int, **changes: Any) -> dict[str, Any]:
    """Four rows a step, for two epochs."""
    settings = {"max_steps": None, "num_train_epochs": 2, "per_device_train_batch_size": 4 // processes, **changes}
    made = training_job(base, data, output, accelerate={"num_processes": processes}, **settings)
    made["training"]["gradient_checkpointing"] = "auto"  # which the first process decides for all
    return made


def run(
    job: dict[str, Any],
    work: Path,
    *,
    command: list[str] | None = None,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    processes = job["accelerate"]["num_processes"]
    return run_stage(
        "tasks.training",
        job,
        folder=work,
        on_line=print,
        on_progress=on_progress,
        env=launch_environment(["cpu"], 1, processes),
        command=command or launch_command(["cpu"], "ddp", processes),
    )


def of_each_step(facts: dict[str, Any], key: str) -> list[float]:
    return [point[key] for point in facts["curve"] if key in point]


def seen(facts: dict[str, Any]) -> list[float]:
    return of_each_step(facts, "validation_loss")


@pytest.mark.parametrize("method", ["lora", "full"])
def test_two_processes_train_what_one_does(base: Path, tmp_path: Path, method: str) -> None:
    data = dataset(tmp_path / "data", 20, validation=8)
    rate = {"lora": 1e-2, "full": 1e-3}[method]
    one, two = (
        run(
            job(base, data, tmp_path / f"of-{count}", count, method=method, learning_rate=rate),
            tmp_path / f"by-{count}",
        )
        for count in (1, 2)
    )
    assert (one["world_size"], two["world_size"]) == (1, 2)
    assert one["steps"] == two["steps"] == 6
    assert of_each_step(one, "tokens") == of_each_step(two, "tokens")
    for key in ("loss", "grad_norm"):
        off = [abs(b / a - 1) for a, b in zip(of_each_step(one, key), of_each_step(two, key), strict=True)]
        assert max(off) < TOLERANCE[method]
    assert len(seen(one)) == 2
    for a, b in zip(seen(one), seen(two), strict=True):
        assert b == pytest.approx(a, rel=TOLERANCE[method])
    assert one["loss"] < 0.7 * of_each_step(one, "loss")[0]  # it did train


def test_one_of_a_pair_is_preempted_and_both_go_on_to_the_same_bytes(base: Path, tmp_path: Path) -> None:
    data = dataset(tmp_path / "data", 22)  # the last step of an epoch is filled up
    whole, halved = (job(base, data, tmp_path / name, 2, save_steps=100) for name in ("whole", "halved"))
    steps_told: list[int] = []
    run(whole, tmp_path / "work-whole", on_progress=lambda event: steps_told.append(event["step"]))
    assert steps_told == list(range(1, 13))  # by one of the two

    def preempt(event: dict[str, Any]) -> None:
        if event["step"] == 3:
            os.kill(worker(1, tmp_path / "work"), signal.SIGTERM)

    with pytest.raises(PreemptedError):
        run(halved, tmp_path / "work", on_progress=preempt)
    kept = checkpoints.newest_whole(Path(halved["checkpoints"]))
    assert kept and 3 <= checkpoints.step_of(kept) < 12
    assert run(halved, tmp_path / "work")["steps"] == 12
    one, other = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "halved"))
    assert one == other


def worker(rank: int, work: Path) -> int:
    """Process id of the job's process with this rank."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = ((process / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
        except OSError:  # ended meanwhile, or somebody else's
            continue
        if str(work / "job.json").encode() in command and f"RANK={rank}".encode() in environment:
            return int(process.name)
    raise AssertionError(f"no process of rank {rank} runs in {work}")


def test_a_launcher_that_starts_too_few_is_an_error(base: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    with pytest.raises(StageError, match="asked for 2 processes, got 1"):
        run(job(base, dataset(tmp_path / "data", 4), tmp_path / "adapter", 2), tmp_path / "work", command=command)
