"""A look at a recipe's data without keeping anything: what `tunefleet validate` reports."""

import tempfile
from pathlib import Path
from typing import Any

from infra.errors import Fault, RequestError
from tasks.ingestion.dataset import build_dataset
from tasks.recipe.schema import Recipe


def check_data(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """{adapter: figures of its data}; RequestError with the faults of all adapters."""
    reports: dict[str, dict[str, Any]] = {}
    faults: list[Fault] = []
    for adapter in recipe.adapters:
        with tempfile.TemporaryDirectory() as folder:
            try:
                reports[adapter.name] = build_dataset(
                    adapter.data, Path(folder), needs_held_out="held_out" in adapter.target.splits
                )
            except RequestError as error:
                faults += [Fault(str(fault), f"adapter {adapter.name!r}") for fault in error.faults]
    if faults:
        raise RequestError(faults)
    return reports
