"""Training as a Prefect task: one adapter on one device slot, in its own process under accelerate."""

import os
import sys
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from prefect import get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from infra.gpus import device_slot
from tasks.artifacts import StageResult
from tasks.recipe.schema import Adapter
from tasks.retrying import STAGE
from tasks.runs import Run, child

QUANTIZATION = {"lora": "none", "qlora": "nf4"}


@task(name="train", task_run_name="train {adapter.name}", tags=["training"], **STAGE)
def train(run: Run, adapter: Adapter, base: StageResult, data: StageResult, *, per_device: int) -> StageResult:
    """The adapter as a PEFT checkpoint; trains at most `per_device` adapters at once on each device."""
    assert adapter.lora and adapter.training and adapter.method, "the recipe was not resolved"
    logger = get_run_logger()
    spec = {
        "method": adapter.method,
        "lora": adapter.lora.model_dump(),
        "training": adapter.training.model_dump(exclude={"logging_steps"}),
    }

    def make(work: Path, output: Path) -> dict[str, Any]:
        store = run.store
        with device_slot(per_device) as device:
            job = {
                "base": str(store.fetch(base.ref)),
                "base_name": base.facts["model"],
                "quantization": QUANTIZATION[adapter.method or ""],
                "data": str(store.fetch(data.ref)),
                "lora": spec["lora"],
                "training": adapter.training.model_dump() if adapter.training else {},
                "device": "cpu" if device == "cpu" else "cuda:0",
                "output": str(output),
            }
            progress = cast(UUID, create_progress_artifact(progress=0.0, key=artifact_key(adapter.name)))

            def show(event: dict[str, Any]) -> None:
                logger.info(
                    "%s: step %d of %d, loss %.3f, %.0f tokens/s, %.0f s left",
                    *(adapter.name, event["step"], event["steps"], event["loss"]),
                    *(event["tokens_per_second"], event["seconds_left"]),
                )
                update_progress_artifact(progress, progress=100 * event["step"] / event["steps"])

            return child(
                *("tasks.training", job, work),
                on_line=logger.debug,
                on_progress=show,
                command=launch_command(device),
                env=device_environment(device, per_device),
            )

    upstream = {"base": base.ref.digest, "data": data.ref.digest}
    return run.once("train", make, version=1, kind="adapters", name=adapter.name, spec=spec, upstream=upstream)


def artifact_key(name: str) -> str:
    """Prefect's artifact keys take lower-case letters, digits and dashes."""
    return "train-" + "".join(mark if mark.isalnum() else "-" for mark in name)


def launch_command(device: str) -> list[str]:
    """accelerate's launcher for one process; what more processes need is in infra/accelerate."""
    one = ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [sys.executable, "-m", "accelerate.commands.launch", *one, *(["--cpu"] if device == "cpu" else [])]


def device_environment(device: str, per_device: int) -> dict[str, str]:
    """One GPU visible to the process, or its share of the CPU's cores."""
    if device != "cpu":
        number = device.removeprefix("cuda:")  # counts within what this process sees
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return {"CUDA_VISIBLE_DEVICES": visible.split(",")[int(number)] if visible else number}
    threads = max((os.cpu_count() or 1) // per_device, 1)
    # Waiting threads spin for a moment, then sleep. GCC's OpenMP spins a hundred times longer by itself, which makes
    # two processes on shared cores many times slower; not spinning at all makes one alone half as slow again.
    return {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        "GOMP_SPINCOUNT": "20000",
        "ACCELERATE_USE_CPU": "true",
    }
