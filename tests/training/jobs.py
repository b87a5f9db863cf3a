"""The job of a training process, as tasks/training/task.py writes it, small enough for the tiny model."""

from pathlib import Path
from typing import Any

from tasks.recipe.schema import Accelerate, Lora, Training


def training_job(base: Path, data: Path, output: Path, *, method: str = "lora", **changes: Any) -> dict[str, Any]:
    """`changes` go over the job's `training`, or over `lora`, `accelerate` and the job itself by those names."""
    lora = {"r": 4, "target_modules": ("q_proj", "v_proj"), **changes.pop("lora", {})}
    accelerate = Accelerate(**changes.pop("accelerate", {}))
    own = changes.pop("job", {})
    training = {"max_steps": 4, "learning_rate": 1e-2, "per_device_train_batch_size": 4, "logging_steps": 1, **changes}
    return {
        "name": "tiny",
        "method": method,
        "base": str(base),
        "base_name": "tiny",
        "data": str(data),
        "lora": Lora(**lora).model_dump(mode="json"),
        "training": {**Training(**training).model_dump(mode="json"), "gradient_checkpointing": False},
        "accelerate": accelerate.model_dump(mode="json"),
        "device": "cpu",
        "checkpoints": str(output.parent / f"{output.name}-checkpoints"),
        "output": str(output),
        **own,
    }
