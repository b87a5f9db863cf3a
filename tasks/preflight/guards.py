"""What has spoilt other people's trainings without a word, looked for in the finished tokens before the first step.

A fault is raised (all of an adapter at once); what may be meant is a warning that says what to do.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from infra.errors import Fault, RequestError
from tasks.ingestion.dataset import read_jsonl
from tasks.training.models import changes_the_base
from tasks.training.rendering import IGNORED, Rendered, render, render_pair
from tasks.training.schedule import epochs_of, steps_of

SPLITS = ("train", "validation")


def measure_rows(tokenizer: Any, data: Path, adapter: Mapping[str, Any]) -> dict[str, Any]:
    """Tokens and steps of an adapter's training rows, with "warnings"; RequestError for rows not to train on."""
    training = adapter["training"]
    rendered = {split: _rendered(tokenizer, data / f"{split}.jsonl") for split in SPLITS}
    pairs = 2 if "chosen" in read_jsonl(data / "train.jsonl")[0] else 1
    if pairs == 2 and adapter["method"] != "full" and changes_the_base(adapter["lora"]):
        raise RequestError(
            f"init_lora_weights {adapter['lora']['init_lora_weights']} moves part of the base's weights into the "
            "adapter, and preference pairs are trained against the base as it was; allowed are true, gaussian, "
            "orthogonal, and loftq with qlora."
        )
    faults = [
        fault for split in SPLITS for fault in row_faults(rendered[split], split, training["max_length"], tokenizer)
    ]
    if faults:
        raise RequestError(faults)
    rows = rendered["train"]
    lengths = [len(row.input_ids) for row in rows]
    count, processes = len(rows) // pairs, adapter["accelerate"]["num_processes"]
    return {
        "steps": steps_of(count, training, processes),
        "tokens_per_epoch": sum(lengths),
        "tokens": round(epochs_of(count, training, processes) * sum(lengths)),
        "longest_row": max(lengths),
        "pairs": pairs == 2,
        "trained_tokens": sum(label != IGNORED for row in rows for label in row.labels),
        "warnings": warnings(
            tokenizer,
            rows=count,
            near_copies=adapter["near_copies"],
            lora=None if adapter["method"] == "full" else adapter["lora"],
        ),
    }


def row_faults(rows: Sequence[Rendered], split: str, max_length: int, tokenizer: Any) -> list[Fault]:
    """One fault for each kind of row that cannot be trained on as it is."""
    faults = []
    if over := [row for row in rows if len(row.input_ids) > max_length]:
        lost = sum(len(row.prompt_ids) >= max_length for row in over)
        faults.append(
            Fault(
                f"{len(over)} of {len(rows)} {split} rows are longer than max_length={max_length} tokens (the longest "
                f"has {max(len(row.input_ids) for row in over)}); cut, they would lose their end token, and {lost} of "
                "them the whole answer. Raise max_length, or shorten the rows."
            )
        )
    if masked := [number for number, row in enumerate(rows, start=1) if set(row.labels) <= {IGNORED}]:
        faults.append(Fault(f"{split}.jsonl:{masked[0]}: no token of {len(masked)} rows would be trained"))
    if endless := [number for number, row in enumerate(rows, 1) if row.labels[-1] != tokenizer.eos_token_id]:
        faults.append(Fault(f"{split}.jsonl:{endless[0]}: {len(endless)} rows do not train the end token"))
    return faults


def warnings(tokenizer: Any, *, rows: int, near_copies: int, lora: Mapping[str, Any] | None) -> list[str]:
    """What may be meant, but seldom is."""
    found = []
    if tokenizer.pad_token is None:
        found.append(
            f"the tokenizer has no pad token; {tokenizer.eos_token} pads, and is still trained where it ends an answer"
        )
    if lora and (rank := max([lora["r"], *lora["rank_pattern"].values()])) > rows:
        found.append(
            f"rank {rank} for {rows} training rows: it can learn each row by heart; a lower lora.r forgets less and "
            "costs less"
        )
    if near_copies:
        found.append(
            f"{near_copies} rows that were kept from training stand in it all the same, as an earlier turn of a chat: "
            "their score is memory, not learning"
        )
    return found


def _rendered(tokenizer: Any, path: Path) -> list[Rendered]:
    """Every row with its one answer, pairs with both."""
    rendered: list[Rendered] = []
    for number, row in enumerate(read_jsonl(path), start=1):
        try:
            rendered += render_pair(tokenizer, row) if "chosen" in row else [render(tokenizer, row)]
        except RequestError as error:  # the first such row will do: a template's fault is every row's
            raise RequestError(Fault(str(error), f"{path.name}:{number}")) from error
    return rendered
