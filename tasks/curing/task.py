"""The cure's pieces as Prefect tasks: a weaker adapter, the base's answers to general prompts, rows of both kinds."""

from pathlib import Path
from typing import Any

from prefect import get_run_logger, task

from infra.errors import StageError
from infra.gpus import device_slot
from infra.hashing import digest_json
from tasks.artifacts import StageResult
from tasks.caching import Work
from tasks.curing.replay import mix, read_prompts
from tasks.curing.scaling import write_scaled
from tasks.evaluation.records import read_records
from tasks.recipe.schema import Adapter
from tasks.retrying import STAGE
from tasks.runs import Run, child
from tasks.training.launching import device_environment


@task(name="scale-adapter", task_run_name="scale {name} by {scale}", **STAGE)
def scale_adapter(run: Run, name: str, trained: StageResult, scale: float) -> StageResult:
    """The adapter with lora_alpha times `scale`; StageError if it is not one that alpha scales."""

    def make(work: Path, output: Path) -> dict[str, Any]:
        write_scaled(run.store.fetch(trained.ref), scale, output)
        return {**trained.facts, "scale": scale}

    spec = {**run.store.manifest(trained.ref)["spec"], "scale": scale}  # a release says how it was trained, too
    return run.once(Work("scale", 1, "adapters", name, spec, {"adapter": trained.ref.digest}), make)


@task(name="answer-general-prompts", task_run_name="base answers general prompts in {quantization}", **STAGE)
def answer_general_prompts(
    run: Run, base: StageResult, quantization: str, prompts_file: str | None, max_new_tokens: int
) -> StageResult:
    """replay.jsonl: what the base answers in this precision. Once per base and prompts, for all adapters."""
    logger, store = get_run_logger(), run.store
    prompts = read_prompts(prompts_file)
    spec = {"quantization": quantization, "prompts": digest_json(prompts), "max_new_tokens": max_new_tokens}

    def show(event: dict[str, Any]) -> None:
        logger.info("the base answered %d of %d general prompts", event["done"], event["of"])

    def make(work: Path, output: Path) -> dict[str, Any]:
        job = {
            **{"base": str(store.fetch(base.ref)), "quantization": quantization},
            **{"prompts": prompts, "max_new_tokens": max_new_tokens, "output": str(output)},
        }
        with device_slot(1, on_wait=logger.info) as device:
            job["device"] = "cpu" if device == "cpu" else "cuda:0"
            environment = device_environment(device, 1)
            return child("tasks.curing", job, work, on_line=logger.debug, on_progress=show, env=environment)

    result = run.once(Work("replay", 1, "replays", base.ref.name, spec, {"base": base.ref.digest}), make)
    logger.info(
        "replay: %d rows of %d prompts (%d ended by themselves, %d cut back to a whole sentence)",
        *(result.facts[key] for key in ("rows", "prompts", "ended", "cut")),
    )
    return result


@task(name="mix-replay", task_run_name="mix replay into {adapter.name}", **STAGE)
def mix_replay(
    run: Run,
    adapter: Adapter,
    data: StageResult,
    replay: StageResult,
    general: list[StageResult],
    *,
    share: float,
    seed: int,
) -> StageResult:
    """The adapter's data set with replayed rows to train on; StageError if these cannot join it.

    `general` are the base's records of the general tasks, whose prompts are not trained on.
    """
    assert adapter.training, "the recipe was not resolved"
    longest, room = replay.facts["longest"], adapter.training.max_length
    if longest > room:
        raise StageError(f"the longest replayed row has {longest} tokens, above training.max_length, {room}; raise it.")

    def make(work: Path, output: Path) -> dict[str, Any]:
        fetch = run.store.fetch
        examined = [
            record["prompt"] for part in general for record in read_records(fetch(part.ref) / "records.parquet")
        ]
        return mix(fetch(data.ref), fetch(replay.ref), output, share=share, seed=seed, examined=examined)

    upstream = {"data": data.ref.digest, "replay": replay.ref.digest}
    upstream |= {f"general {number}": part.ref.digest for number, part in enumerate(general)}
    result = run.once(Work("mix", 1, "datasets", adapter.name, {"share": share, "seed": seed}, upstream), make)
    facts = result.facts
    few = (
        "" if facts["replayed"] == facts["replay_wanted"] else f", of {facts['replay_wanted']} wanted: too few prompts"
    )
    get_run_logger().info(
        "%s: %d rows to train on, %d of them replayed%s", adapter.name, facts["train"], facts["replayed"], few
    )
    return result
