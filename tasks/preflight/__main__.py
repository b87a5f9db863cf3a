"""`python -m tasks.preflight job.json`: what can be known of a fleet before any weight is trained.

Per adapter: does target_modules match, how many parameters train, does every row fit, how many steps; and for all:
are the general tasks known to lm-eval. It reads the architecture and the tokenizer, never the weights, and reports
the faults of all adapters at once.
"""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from infra import stage_process
from infra.errors import Fault, RequestError
from tasks.evaluation.catalogue import unknown_tasks
from tasks.ingestion.dataset import read_jsonl
from tasks.training.models import add_adapter, meta_base
from tasks.training.rendering import render
from tasks.training.schedule import steps_of


def run(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    base = Path(job["base"])
    tokenizer = AutoTokenizer.from_pretrained(base)
    facts: dict[str, Any] = {}
    faults = unknown_tasks(job["general"], job["include_path"])
    for adapter in job["adapters"]:
        facts[adapter["name"]] = {}
        for measure in (
            lambda: _count_parameters(base, adapter["lora"]),  # noqa: B023 - called before the loop goes on
            lambda: _measure_rows(tokenizer, Path(adapter["data"]), adapter["training"]),  # noqa: B023
        ):
            try:
                facts[adapter["name"]] |= measure()
            except RequestError as error:
                faults += [Fault(fault.message, f"adapter {adapter['name']!r}") for fault in error.faults]
    if faults:
        raise RequestError(faults)
    return facts


def _count_parameters(base: Path, lora: dict[str, Any]) -> dict[str, int]:
    trainable, total = add_adapter(meta_base(base), lora).get_nb_trainable_parameters()
    return {"trainable_params": trainable, "total_params": total}


def _measure_rows(tokenizer: Any, data: Path, training: dict[str, Any]) -> dict[str, int]:
    """Tokens of the training rows, and the optimizer steps they make; RequestError for rows over max_length."""
    lengths = []
    for row in read_jsonl(data / "train.jsonl"):
        rendered = render(tokenizer, row)
        lengths.append(len(rendered.input_ids))
    longest = max(lengths)
    if longest > training["max_length"]:
        over = sum(length > training["max_length"] for length in lengths)
        raise RequestError(
            f"{over} of {len(lengths)} training rows are longer than max_length={training['max_length']} tokens (the "
            f"longest has {longest}). Raise max_length, or shorten the rows: cut rows would lose their end token."
        )
    return {"steps": steps_of(len(lengths), training), "tokens_per_epoch": sum(lengths), "longest_row": longest}


if __name__ == "__main__":
    stage_process.main(run)
