"""`python -m tasks.preflight job.json`: what can be known of a fleet before any weight is trained.

Per adapter: does target_modules match, how many parameters train, can every row be trained on, how many steps, and
what looks like a mistake; and for all: are the general tasks known to lm-eval, with the metrics that are asked for, do
any run code without permission, has each look documents of every task, and could the base be written as GGUF, where
that is wanted. It reads the architecture and the tokenizer, never the weights, and reports all faults at once.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from infra import stage_process
from infra.errors import Fault, RequestError
from tasks.evaluation.catalogue import task_faults
from tasks.evaluation.documents import check_metric
from tasks.exporting.possible import export_faults
from tasks.ingestion.dataset import read_jsonl
from tasks.planning.general import few_documents
from tasks.preflight.guards import measure_rows
from tasks.recipe.schema import GeneralTask
from tasks.training import methods
from tasks.training.memory import Memory, estimate
from tasks.training.models import add_adapter, meta_base


def run(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    base = Path(job["base"])
    tokenizer = AutoTokenizer.from_pretrained(base)
    facts: dict[str, Any] = {}
    faults = task_faults(job["general"], job["include_path"], permitted=job["confirm_run_unsafe_code"])
    general = [GeneralTask.model_validate(one) for one in job["general"]]
    faults += few_documents(general, job["looks"], job["include_path"])
    if job.get("gguf"):
        faults += gguf_faults(base)
    for adapter in job["adapters"]:
        facts[adapter["name"]] = {}
        for measure in (
            lambda: count_parameters(base, adapter),  # noqa: B023 - called before the loop goes on
            lambda: measure_rows(tokenizer, Path(adapter["data"]), adapter),  # noqa: B023
            lambda: fit_metric(Path(adapter["data"]), adapter["metric"]),  # noqa: B023
            lambda: need_memory(base, adapter, facts[adapter["name"]], job["memory"]),  # noqa: B023
        ):
            try:
                facts[adapter["name"]] |= measure()
            except RequestError as error:
                faults += [Fault(str(fault), f"adapter {adapter['name']!r}") for fault in error.faults]
    if faults:
        raise RequestError(faults)
    return facts


def count_parameters(base: Path, adapter: Mapping[str, Any]) -> dict[str, int]:
    """Trainable and total parameters; RequestError if none would train."""
    model = meta_base(base)
    trainable, total = methods.count(model if adapter["method"] == "full" else add_adapter(model, adapter["lora"]))
    if not trainable:
        raise RequestError("no parameter of this model would be trained; look at target_modules.")
    return {"trainable_params": trainable, "total_params": total}


def need_memory(
    base: Path, adapter: Mapping[str, Any], known: Mapping[str, Any], devices: Sequence[str]
) -> dict[str, Any]:
    """Bytes of each process that trains the adapter on `devices` (cpu, cuda); nothing if its rows were not measured.

    Under "cpu_shared" and "cuda_shared" stands what of it several adapters in one process need once.
    """
    if "longest_row" not in known or not devices:
        return {}
    model = meta_base(base)
    if adapter["method"] != "full":
        model = add_adapter(model, adapter["lora"])

    def needed(device: str) -> Memory:
        return estimate(
            model,
            method=adapter["method"],
            training=adapter["training"],
            longest_row=known["longest_row"],
            gradient_checkpointing=adapter["training"]["gradient_checkpointing"] is True,
            device=device,
            num_processes=adapter["accelerate"]["num_processes"],
            config=adapter["accelerate"]["config"],
            pairs=known["pairs"],
        )

    memory = {device: needed(device) for device in devices}
    totals = {device: one.total for device, one in memory.items()}
    return {"memory": totals | {f"{device}_shared": one.shared for device, one in memory.items()}}


def gguf_faults(base: Path) -> list[Fault]:
    """What would keep the trained model from being exported, hours later."""
    return [Fault(f"gguf: {fault}", "publish.what") for fault in export_faults(base)]


def fit_metric(data: Path, metric: str) -> dict[str, Any]:
    """No figures; RequestError if the target's metric cannot score rows of this kind."""
    check_metric(read_jsonl(data / "train.jsonl")[0], metric)
    return {}


if __name__ == "__main__":
    stage_process.main(run)
