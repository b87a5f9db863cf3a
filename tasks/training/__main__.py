"""`accelerate launch -m tasks.training job.json`: train one adapter in a process of its own."""

from pathlib import Path
from typing import Any

from infra import stage_process
from tasks.training.sft import train_adapter


def run(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    return train_adapter(
        base=Path(job["base"]),
        base_name=job["base_name"],
        quantization=job["quantization"],
        data=Path(job["data"]),
        lora=job["lora"],
        training=job["training"],
        device=job["device"],
        work=folder,
        output=Path(job["output"]),
    )


if __name__ == "__main__":
    stage_process.main(run)
