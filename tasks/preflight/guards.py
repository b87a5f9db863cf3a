"""What has spoilt other people's trainings without a word, looked for in the finished tokens before the first step.

A fault is raised (all of an adapter at once); what may be meant is a warning that says what to do.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from infra.errors import Fault, RequestError
from tasks.ingestion.dataset import read_jsonl
from tasks.training.rendering import IGNORED, Rendered, render, render_pair
from tasks.training.schedule import steps_of

SPLITS = ("train", "validation")


def measure_rows(tokenizer: Any, data: Path, adapter: Mapping[str, Any]) -> dict[str, Any]:
    """Tokens and steps of an adapter's training rows, with "warnings"; RequestError for rows not to train on."""
    training = adapter["training"]
    rendered = {split: _rendered(tokenizer, data / f"{split}.jsonl") for split in SPLITS}
    faults = [
        fault for split in SPLITS for fault in row_faults(rendered[split], split, training["max_length"], tokenizer)
    ]
    if faults:
        raise RequestError(faults)
    rows = rendered["train"]
    lengths = [len(row.input_ids) for row in rows]
    pairs = 2 if "chosen" in read_jsonl(data / "train.jsonl")[0] else 1
    return {
        "steps": steps_of(len(rows) // pairs, training, adapter["accelerate"]["num_processes"]),
        "tokens_per_epoch": sum(lengths),
        "longest_row": max(lengths),
        "trained_tokens": sum(label != IGNORED for row in rows for label in row.labels),
        "warnings": warnings(
            tokenizer,
            rows=len(rows) // pairs,
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
            f"{near_copies} held-out rows stand among the training rows, but for case, spaces or punctuation, or as an "
            "earlier turn of a chat: their score is memory, not learning"
        )
    return found


def _rendered(tokenizer: Any, path: Path) -> list[Rendered]:
    """Every row with its one answer, pairs with both."""
    rows = read_jsonl(path)
    if rows and "chosen" in rows[0]:
        return [side for row in rows for side in render_pair(tokenizer, row)]
    return [render(tokenizer, row) for row in rows]
