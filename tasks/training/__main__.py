"""`python -m tasks.training job.json`, under accelerate for several processes: one training in processes of its own."""

from pathlib import Path
from typing import Any

from infra import stage_process
from tasks.training.train import train


def run(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    return train(job, folder)


if __name__ == "__main__":
    stage_process.main(run)
