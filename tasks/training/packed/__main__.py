"""`python -m tasks.training.packed job.json`: the trainings of one pack, in this process."""

from pathlib import Path
from typing import Any

from infra import stage_process
from tasks.training.packed.pack import train


def run(job: dict[str, Any], _folder: Path) -> dict[str, Any]:
    return train(job)


if __name__ == "__main__":
    stage_process.main(run)
