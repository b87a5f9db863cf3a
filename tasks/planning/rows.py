"""The rows of an adapter as the run will have them, and how long they are in tokens."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.errors import RequestError
from infra.storage import ArtifactRef, Store
from tasks.ingestion.dataset import build_dataset, read_jsonl
from tasks.ingestion.task import ingest_work
from tasks.planning.made import made
from tasks.recipe.schema import Adapter
from tasks.training.rendering import Rendered, render, render_pair

MEASURED = 3000  # rows that a plan renders; of more it renders these and the largest ones
LARGEST = 64
Row = dict[str, Any]


@dataclass(frozen=True)
class DataSet:
    """An adapter's data set: in the store, or built into a folder of its own."""

    folder: Path
    report: dict[str, Any]  # figures of tasks/ingestion/dataset.py
    ref: ArtifactRef | None  # where it stands in the store, if it does

    def read(self, side: str) -> list[Row]:
        return read_jsonl(self.folder / f"{side}.jsonl")


def data_set(adapter: Adapter, store: Store | None, scratch: Path) -> DataSet:
    """From `store` if it is there, else built below `scratch`; RequestError names what is wrong with the rows."""
    work = ingest_work(adapter)
    ref = made(store, work) if store else None
    if store and ref:
        folder = store.fetch(ref)
        return DataSet(folder, store.manifest(ref)["facts"], ref)
    folder = scratch / work.key
    if not (folder / "report.json").is_file():
        folder.mkdir(exist_ok=True)
        build_dataset(adapter.data, folder, needs_held_out="held_out" in adapter.target.splits)
    return DataSet(folder, json.loads((folder / "report.json").read_text()), None)


def sides_of(tokenizer: Any, row: Row) -> tuple[Rendered, ...]:
    """The row as it is trained: one sequence, or chosen and rejected."""
    return render_pair(tokenizer, row) if "chosen" in row else (render(tokenizer, row),)


@dataclass(frozen=True)
class Lengths:
    """Tokens of the training rows; `measured` of them were rendered, and `tokens` stands for all."""

    tokens: int  # one pass over all rows
    longest: int
    too_long: int
    measured: int


def measure(tokenizer: Any, rows: Sequence[Row], max_length: int, *, what: str = "train") -> Lengths:
    """RequestError if a row is longer than `max_length` tokens, in the words of the preflight."""
    sample, largest = rows, []
    if len(rows) > MEASURED:
        sample = rows[:: len(rows) // MEASURED + 1]
        largest = sorted(rows, key=lambda row: -len(str(row)))[:LARGEST]
    per_row = [[len(side.input_ids) for side in sides_of(tokenizer, row)] for row in sample]
    longest = max(max(sides) for sides in [*per_row, *([len(s.input_ids) for s in sides_of(tokenizer, row)]
                                                        for row in largest)])  # fmt: skip
    too_long = sum(max(sides) > max_length for sides in per_row)
    if longest > max_length:
        raise RequestError(
            f"{max(too_long, 1)} of {len(sample)} {what} rows are longer than max_length={max_length} tokens (the "
            f"longest has {longest}). Raise max_length, or shorten the rows: cut rows would lose their end token."
        )
    total = sum(map(sum, per_row))
    return Lengths(round(total * len(rows) / len(sample)), longest, too_long, len(sample))
