"""What `tunefleet validate` says of the data of a whole fleet."""

from pathlib import Path
from typing import Any

import pytest

from infra.errors import RequestError
from tasks.ingestion.check import check_data
from tasks.recipe.loading import load_recipe
from tasks.recipe.schema import Recipe
from tasks.recipe.starter import STARTER

ROWS = [{"q": number, "a": number + 1} for number in range(10)]
ON_TRAIN = {"splits": ["train"], "decides": "train"}


def adapter(name: str, *, user: str = "{{ q }}", target: dict[str, Any] | None = None, **data: Any) -> dict[str, Any]:
    data = {"rows": ROWS, "messages": {"user": user, "assistant": "{{ a }}"}, **data}
    return {"name": name, "data": data, "target": target or {}}


def fleet(*adapters: dict[str, Any]) -> Recipe:
    return Recipe.model_validate({"name": "fleet", "adapters": adapters})


def test_the_starter_has_data(tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text(STARTER)
    assert check_data(load_recipe(tmp_path / "recipe.yaml")) == {
        "iso-dates": {
            "kind": "chat",
            "read": 60,
            "train": 40,
            "validation": 0,
            "held_out": 20,
            "duplicates": 0,
            "malformed": 0,
            "near_copies": 0,
        }
    }


def test_every_adapter_has_its_figures():
    reports = check_data(fleet(adapter("one"), adapter("two", held_out=0, target=ON_TRAIN)))
    assert {name: (report["train"], report["held_out"]) for name, report in reports.items()} == {
        "one": (8, 2),
        "two": (10, 0),
    }


def test_the_faults_of_all_adapters_at_once():
    recipe = fleet(
        adapter("one", user="{{ question }}"),
        adapter("two"),
        adapter("three", held_out=0),
        adapter("four", rows=None, path="/no/such/rows.csv"),
        {"name": "five", "data": {"rows": ROWS}},
    )
    with pytest.raises(RequestError) as error:
        check_data(recipe)
    starts = [
        "adapter 'one': messages.user: column 'question' is not in rows; its columns are q, a",
        "adapter 'three': rows: the target scores held-out rows, but held_out=0 of 10 rows leaves none.",
        "adapter 'four': data file /no/such/rows.csv does not exist",
        "adapter 'five': rows: its columns are q, a, and are of no known format (alpaca: instruction, output, [input];",
    ]
    found = [str(fault) for fault in error.value.faults]
    assert len(found) == len(starts) and all(map(str.startswith, found, starts))
