"""Training as a Prefect task: one adapter, or one whole model, by the engine that it gets.

Packed, it is a pack of one (together.py). With TRL it has device slots and processes of its own.

A job keeps its checkpoints under its stage key, so that the next run of the same work goes on where this one was
stopped, also on another machine (kept.py). A job that runs out of memory starts again with half the rows per forward
pass and twice the accumulation.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from prefect import get_run_logger, task

from infra.gpus import CPU, device_slots
from infra.settings import scratch_folder
from tasks.artifacts import StageResult
from tasks.recipe.schema import Adapter
from tasks.retrying import STAGE
from tasks.runs import Run, child
from tasks.training.engines import config_of, engine_of
from tasks.training.kept import Kept, forget
from tasks.training.launching import launch_command, launch_environment, spread
from tasks.training.out_of_memory import Facts, within_memory
from tasks.training.pack_task import train_members
from tasks.training.progress import Progress
from tasks.training.sharing import Member
from tasks.training.work import checkpoints_of, exactly_like, train_work


@task(name="train", task_run_name="train {adapter.name}", tags=["training"], **STAGE)
def train(
    run: Run,
    adapter: Adapter,
    base: StageResult,
    data: StageResult,
    *,
    per_device: int,
    on_validation: Callable[[int, float], None] | None = None,
) -> StageResult:
    """The trained adapter, or model; TRL trains at most `per_device` adapters at once on each device.

    `on_validation(step, loss)` hears every validation loss; what it raises ends the training.
    """
    engine = engine_of(adapter, config_of(run.store, base), kind=data.facts["kind"])
    if engine.name == "trl":
        return _with_trl(run, adapter, base, data, per_device, on_validation)
    done, lost = train_members(run, [Member(adapter, data)], base, on_validation)
    if lost:
        raise lost[adapter.name]
    return done[adapter.name]


def _with_trl(
    run: Run,
    adapter: Adapter,
    base: StageResult,
    data: StageResult,
    per_device: int,
    on_validation: Callable[[int, float], None] | None,
) -> StageResult:
    assert adapter.training and adapter.lora and adapter.accelerate, "the recipe was not resolved"
    logger, store, asked = get_run_logger(), run.store, adapter.accelerate
    work = train_work(adapter, base=base.ref.digest, data=data.ref.digest)
    like = exactly_like("trl")
    logs = scratch_folder(store).parent / "runs" / run.run_id / "logs" / adapter.name
    job = {
        "name": adapter.name,
        "method": adapter.method,
        "base_name": base.facts["model"],
        "lora": adapter.lora.model_dump(mode="json"),
        "training": adapter.training.model_dump(mode="json"),
        "accelerate": asked.model_dump(mode="json"),
    }

    def kept(batch: int) -> Kept:
        return Kept(store, f"{checkpoints_of(work)}/{like}-batch-{batch}", logger)

    def make(folder: Path, output: Path) -> Facts:
        progress = Progress(adapter.name, on_validation)
        machines = spread(asked.config, asked.num_processes)
        with device_slots(asked.num_processes // machines.count, per_device, on_wait=logger.info) as places:
            job["from_store"] = {"store": store.root, "base": base.ref.model_dump(), "data": data.ref.model_dump()}
            job["base"], job["data"] = str(store.fetch(base.ref)), str(store.fetch(data.ref))
            job["device"] = CPU if places == [CPU] else "cuda:0"

            def attempt(training: Facts) -> Facts:
                batch = training["per_device_train_batch_size"]
                shutil.rmtree(output)
                output.mkdir()
                here = kept(batch)
                here.fetch()
                with here.sent():
                    return child(
                        "tasks.training",
                        {
                            **job,
                            "training": training,
                            "checkpoints": str(here.folder),
                            "output": str(output),
                        },
                        folder / f"batch-{batch}",
                        on_line=logger.debug,
                        on_progress=progress.show,
                        command=launch_command(places, asked.config, asked.num_processes, machines),
                        env={
                            **launch_environment(places, per_device, asked.num_processes, machines),
                            "TENSORBOARD_LOGGING_DIR": str(logs),
                        },
                    )

            def saved_step(batch: int) -> int:
                return kept(batch).saved_step

            return within_memory(attempt, job["training"], saved_step=saved_step, tell=logger.warning)

    result = run.once(work, make)
    forget(store, checkpoints_of(work), logger)  # the result is in the store; nothing will be resumed
    return result
