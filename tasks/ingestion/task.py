"""Ingestion as Prefect tasks: an adapter's rows, and the base model."""

from pathlib import Path
from typing import Any

from prefect import get_run_logger, task

from infra.hashing import digest_file
from tasks.artifacts import StageResult
from tasks.caching import Work
from tasks.ingestion.base_model import identify
from tasks.ingestion.dataset import build_dataset
from tasks.ingestion.hub_rows import hub_commit
from tasks.recipe.schema import Adapter, Base
from tasks.retrying import STAGE
from tasks.runs import Run, child


def ingest_work(adapter: Adapter) -> Work:
    """What ingesting an adapter's rows depends on: the recipe's words, and the file's content or the Hub's commit."""
    data = adapter.data
    spec = {**data.model_dump(mode="json", exclude={"path"}), "needs_held_out": "held_out" in adapter.target.splits}
    upstream = {"file": digest_file(Path(data.path))} if data.path and Path(data.path).is_file() else {}
    if data.hub:
        upstream = {"hub": hub_commit(data.hub, data.hub_revision)}
    return Work("ingest", 2, "datasets", adapter.name, spec, upstream)


@task(name="ingest", task_run_name="ingest {adapter.name}", **STAGE)
def ingest(run: Run, adapter: Adapter) -> StageResult:
    """The adapter's rows, split and free of duplicates."""

    ingesting = ingest_work(adapter)
    data = adapter.data.model_copy(update={"hub_revision": ingesting.upstream.get("hub")})

    def make(work: Path, output: Path) -> dict[str, Any]:
        return build_dataset(data, output, needs_held_out="held_out" in adapter.target.splits)

    result = run.once(ingesting, make)
    facts = result.facts
    get_run_logger().info(
        "%s: %d rows to train on (%s), %d to validate, %d held out; dropped %d duplicates, %d malformed",
        *(adapter.name, facts["train"], facts["kind"], facts["validation"]),
        *(facts["held_out"], facts["duplicates"], facts["malformed"]),
    )
    return result


def base_work(base: Base) -> Work:
    """What importing a base depends on: the content that its name stands for now."""
    name = Path(base.model).stem.lower().replace(" ", "-")
    return Work("import-base", 2, "bases", name, identify(base.model, base.revision, base.chat_template), {})


@task(name="import-base", task_run_name="import base {base.model}", **STAGE)
def import_base(run: Run, base: Base) -> StageResult:
    """The base model as safetensors in the store."""
    logger = get_run_logger()
    importing = base_work(base)
    revision = importing.spec.get("commit")

    def make(work: Path, output: Path) -> dict[str, Any]:
        logger.info("bringing %s into the store (once)", base.model)
        job = {"model": base.model, "revision": revision, "output": str(output), "chat_template": base.chat_template}
        facts = child("tasks.ingestion", job, work, on_line=logger.debug)
        return {**facts, "model": base.model, "revision": revision}

    return run.once(importing, make)
