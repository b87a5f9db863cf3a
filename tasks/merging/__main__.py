"""`python -m tasks.merging job.json`: merge one adapter into its base, in a process of its own."""

from pathlib import Path
from typing import Any

from infra import stage_process
from tasks.merging.merge import merge


def run(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    return merge(Path(job["base"]), Path(job["adapter"]), Path(job["data"]), Path(job["output"]))


if __name__ == "__main__":
    stage_process.main(run)
