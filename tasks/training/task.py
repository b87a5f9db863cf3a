"""Training as a Prefect task: one adapter on its device slots, in processes of its own.

A job keeps its checkpoints under its stage key, so that the next run of the same work goes on where this one was
stopped, also on another machine (kept.py). A job that runs out of memory starts again with half the rows per forward
pass and twice the accumulation.
"""

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from httpx import HTTPError
from prefect import get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from infra.errors import KilledError, OutOfMemoryError
from infra.gpus import CPU, device_slots, devices
from infra.hashing import SHORT, digest_json
from infra.settings import scratch_folder
from tasks.artifacts import StageResult
from tasks.caching import Work, library_versions
from tasks.recipe.schema import Adapter
from tasks.reporting.prefect_artifacts import artifact_key
from tasks.retrying import STAGE
from tasks.runs import Run, child
from tasks.training.checkpoints import newest_whole, step_of
from tasks.training.kept import Kept, forget
from tasks.training.launching import launch_command, launch_environment, spread

# How often somebody looks, saves or reports, and how memory is saved, does not change the weights; max_length is only
# checked. Checkpoints are told apart by library versions and kind of device as well: exactness ends where these change.
NOT_IN_THE_KEY = {
    *("logging_steps", "save_steps", "report_to", "max_length"),
    *("gradient_checkpointing", "min_per_device_train_batch_size"),
}


def train_work(adapter: Adapter, *, base: str, data: str) -> Work:
    """What training an adapter depends on: its settings, and the digests of base and data."""
    assert adapter.lora and adapter.training and adapter.accelerate, "the recipe was not resolved"
    spec: dict[str, Any] = {
        "method": adapter.method,
        "lora": None if adapter.method == "full" else adapter.lora.model_dump(mode="json"),
        "training": adapter.training.model_dump(mode="json", exclude=NOT_IN_THE_KEY),
        "accelerate": adapter.accelerate.model_dump(mode="json"),
    }
    kind = "models" if adapter.method == "full" else "adapters"
    return Work("train", 2, kind, adapter.name, spec, {"base": base, "data": data})


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
    """The trained adapter, or model; trains at most `per_device` adapters at once on each device.

    `on_validation(step, loss)` hears every validation loss; what it raises ends the training.
    """
    assert adapter.training and adapter.lora and adapter.accelerate, "the recipe was not resolved"
    logger, store, asked = get_run_logger(), run.store, adapter.accelerate
    work = train_work(adapter, base=base.ref.digest, data=data.ref.digest)
    checkpoints = f"checkpoints/{work.key}"
    same = digest_json({"versions": library_versions(), "device": devices()[0].partition(":")[0]})[:SHORT]
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
        return Kept(store, f"{checkpoints}/{same}-batch-{batch}", logger)

    def make(folder: Path, output: Path) -> dict[str, Any]:
        progress: UUID | None = None
        with suppress(HTTPError):  # a bar in Prefect's UI; no training ends because the API is away
            progress = cast(UUID, create_progress_artifact(progress=0.0, key=artifact_key("train", adapter.name)))

        def show(event: dict[str, Any]) -> None:
            if "validation_loss" in event:
                logger.info("%s: step %d, validation loss %.4f", adapter.name, event["step"], event["validation_loss"])
                if on_validation:
                    on_validation(event["step"], event["validation_loss"])
                return
            logger.info(
                "%s: step %d of %d, loss %.3f, %.0f tokens/s, %.0f s left",
                *(adapter.name, event["step"], event["steps"], event["loss"]),
                *(event["tokens_per_second"], event["seconds_left"]),
            )
            if progress:
                with suppress(HTTPError):
                    update_progress_artifact(progress, progress=100 * event["step"] / event["steps"])

        machines = spread(asked.config, asked.num_processes)
        with device_slots(asked.num_processes // machines.count, per_device, on_wait=logger.info) as places:
            job["from_store"] = {"store": store.root, "base": base.ref.model_dump(), "data": data.ref.model_dump()}
            job["base"], job["data"] = str(store.fetch(base.ref)), str(store.fetch(data.ref))
            job["device"] = CPU if places == [CPU] else "cuda:0"

            def attempt(training: dict[str, Any]) -> dict[str, Any]:
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
                        on_progress=show,
                        command=launch_command(places, asked.config, asked.num_processes, machines),
                        env={
                            **launch_environment(places, per_device, asked.num_processes, machines),
                            "TENSORBOARD_LOGGING_DIR": str(logs),
                        },
                    )

            def saved_step(batch: int) -> int:
                checkpoint = newest_whole(kept(batch).folder)
                return step_of(checkpoint) if checkpoint else 0

            return within_memory(attempt, job["training"], saved_step=saved_step, tell=logger.warning)

    result = run.once(work, make)
    forget(store, checkpoints, logger)  # the result is in the store; nothing will be resumed
    return result


def within_memory(
    attempt: Callable[[dict[str, Any]], dict[str, Any]],
    training: dict[str, Any],
    *,
    saved_step: Callable[[int], int],
    tell: Callable[..., None],
) -> dict[str, Any]:
    """The figures of `attempt`, with `out_of_memory_at`: the batch sizes that did not fit.

    Rows per optimizer step stay what the recipe says: half the batch, twice the accumulation. OutOfMemoryError at the
    floor, `min_per_device_train_batch_size`, or where the batch is odd. A process that was killed may have been killed
    by anybody: it goes on with the same batch from its checkpoint (`saved_step` of a batch), and only when it is killed
    again without having got further was it memory.
    """
    too_large: list[int] = []
    killed_after: int | None = None
    while True:
        batch, accumulation = training["per_device_train_batch_size"], training["gradient_accumulation_steps"]
        try:
            return {**attempt(training), "out_of_memory_at": too_large}
        except OutOfMemoryError as error:
            if isinstance(error, KilledError) and killed_after != (step := saved_step(batch)):
                killed_after = step
                tell("killed; going on after step %d with the same %d rows per forward pass", step, batch)
                continue
            killed_after = None
            floor = training["min_per_device_train_batch_size"]
            if batch % 2 or batch // 2 < floor:
                raise OutOfMemoryError(
                    f"batches of {batch} rows do not fit, and smaller ones are not allowed "
                    f"(min_per_device_train_batch_size: {floor}{', and the batch is odd' if batch % 2 else ''}). Take "
                    f"gradient_checkpointing: true, method: qlora, a lower max_length or a smaller base. {error}"
                ) from error
            tell("out of memory with %d rows per forward pass; starting again with %d", batch, batch // 2)
            too_large.append(batch)
            training = {
                **training,
                "per_device_train_batch_size": batch // 2,
                "gradient_accumulation_steps": 2 * accumulation,
            }
