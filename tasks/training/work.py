"""What training an adapter depends on: the key of its result, and what else tells its checkpoints apart."""

from typing import Any, Literal

from infra.gpus import devices
from infra.hashing import SHORT, digest_json
from tasks.caching import Work, library_versions
from tasks.recipe.schema import Adapter

# How often somebody looks, saves or reports, and how memory is saved, does not change the weights; max_length is only
# checked. Engines differ in the last bits, and so do library versions and kinds of device.
NOT_IN_THE_KEY = {
    *("logging_steps", "save_steps", "report_to", "max_length", "engine"),
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


def checkpoints_of(work: Work) -> str:
    """Where all checkpoints of the training lie, under the work folder of the store and of this machine."""
    return f"checkpoints/{work.key}"


def exactly_like(engine: Literal["packed", "trl"]) -> str:
    """What checkpoints are told apart by beside the key: a training goes on exactly only where this is the same."""
    device = devices()[0].partition(":")[0]
    return digest_json({"versions": library_versions(), "device": device, "engine": engine})[:SHORT]
