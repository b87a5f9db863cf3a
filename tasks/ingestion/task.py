"""Ingestion as Prefect tasks: an adapter's rows, and the base model."""

from pathlib import Path
from typing import Any

from prefect import get_run_logger, task

from infra.hashing import digest_file
from tasks.artifacts import StageResult
from tasks.ingestion.base_model import identify
from tasks.ingestion.dataset import build_dataset
from tasks.recipe.schema import Adapter, Base
from tasks.retrying import STAGE
from tasks.runs import Run, child


@task(name="ingest", task_run_name="ingest {adapter.name}", **STAGE)
def ingest(run: Run, adapter: Adapter) -> StageResult:
    """The adapter's rows as chats, split and free of duplicates."""
    data = adapter.data
    needs_held_out = "held_out" in adapter.target.splits
    spec = {**data.model_dump(exclude={"path"}), "needs_held_out": needs_held_out}
    upstream = {"file": digest_file(Path(data.path))} if data.path and Path(data.path).is_file() else {}

    def make(work: Path, output: Path) -> dict[str, Any]:
        return build_dataset(data, output, needs_held_out=needs_held_out)

    result = run.once("ingest", make, version=1, kind="datasets", name=adapter.name, spec=spec, upstream=upstream)
    facts = result.facts
    get_run_logger().info(
        "%s: %d rows to train on, %d held out; dropped %d duplicates, %d malformed",
        *(adapter.name, facts["train"], facts["held_out"], facts["duplicates"], facts["malformed"]),
    )
    return result


@task(name="import-base", task_run_name="import base {base.model}", **STAGE)
def import_base(run: Run, base: Base) -> StageResult:
    """The base model as safetensors in the store."""
    logger = get_run_logger()
    identity = identify(base.model, base.revision)

    def make(work: Path, output: Path) -> dict[str, Any]:
        logger.info("bringing %s into the store (once)", base.model)
        job = {"model": base.model, "revision": identity.get("commit"), "output": str(output)}
        facts = child("tasks.ingestion", job, work, on_line=logger.debug)
        return {**facts, "model": base.model, "revision": identity.get("commit")}

    name = Path(base.model).stem.lower().replace(" ", "-")
    return run.once("import-base", make, version=1, kind="bases", name=name, spec=identity, upstream={})
