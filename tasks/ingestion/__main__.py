"""`python -m tasks.ingestion job.json`: bring a base model into the store's form, in a process of its own."""

from pathlib import Path
from typing import Any

from infra import stage_process
from tasks.ingestion.base_model import import_base


def run(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    return import_base(job["model"], job["revision"], Path(job["output"]), job.get("chat_template"))


if __name__ == "__main__":
    stage_process.main(run)
