"""Until decided: documents in three looks, and no further for an adapter whose answer is clear."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from tasks.forgetting.looks import levels
from tests.flows.conftest import FinishedRun
from tests.flows.recipes import write_tiny_recipe

pytestmark = pytest.mark.slow

DOCUMENTS = 240


def write_choices(folder: Path, base: Path) -> Path:
    """Which letter follows? In four of five documents the right one is the one that the base finds likelier."""
    own = folder / "choices"
    own.mkdir()
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    letters = [tokenizer.encode(letter)[0] for letter in "ab"]
    rows = []
    for number in range(DOCUMENTS):
        question = f"{number * 37 % 1000} and {number * 91 % 777}: "
        with torch.inference_mode():
            likelier = int(model(tokenizer(question, return_tensors="pt").input_ids).logits[0, -1, letters].argmax())
        rows.append({"question": question, "answer": likelier if number % 5 else 1 - likelier})
    (own / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "own_choices",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(own / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": ["a", "b"],
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
        "num_fewshot": 0,
    }
    (own / "own_choices.yaml").write_text(yaml.safe_dump(task))
    return own


@pytest.fixture(scope="module")
def looked(prefect_api: None, tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> FinishedRun:
    from flows.train_adapters import train_adapters

    folder = tmp_path_factory.mktemp("looked")
    evaluation = {
        "batch_size": 8,
        "general": [{"task": "own_choices", "margin": 0.02}],
        "include_path": str(write_choices(folder, tiny_base)),
        "self_tests": False,
    }
    recipe = write_tiny_recipe(folder, tiny_base, evaluation=evaluation, gate={"looks": 3}, method="lora")
    summary = train_adapters(str(recipe), store=str(folder / "store"))
    return FinishedRun(folder, recipe, folder / "store", summary)


def documents(run: FinishedRun, side: str) -> list[list[str]]:
    """The ids of the documents that this side was asked, a list for each look."""
    folders = (run.store / "scores").glob(f"{side}-own_choices-*")
    return [pq.read_table(folder / "records.parquet")["doc_id"].to_pylist() for folder in folders]


def test_looks_are_different_documents_and_together_all_of_them(looked: FinishedRun) -> None:
    parts = documents(looked, "base")
    assert sorted(map(len, parts)) == [80, 80, 80]
    assert sorted(int(one) for part in parts for one in part) == list(range(DOCUMENTS))


def test_what_is_decided_is_not_asked_again_and_what_is_open_is(looked: FinishedRun) -> None:
    learns, idles = looked.summary["adapters"]
    assert learns["verdict"] == "FAIL", learns["reasons"]
    assert len(documents(looked, "learns")) < 3, "it was clear before the last look"
    assert len(documents(looked, "idles")) == 3 and idles["verdict"] != "PASS", idles["reasons"]
    seen = {
        adapter["name"]: task["n"] for adapter in (learns, idles) for task in adapter["tasks"] if "own" in task["task"]
    }
    assert seen == {"learns": 80 * len(documents(looked, "learns")), "idles": DOCUMENTS}


def test_each_look_has_its_level_for_each_of_the_two_adapters(looked: FinishedRun) -> None:
    rules = [json.loads(path.read_text())["rule"] for path in (looked.store / "verdicts").glob("idles-*/verdict.json")]
    assert sorted(rule["alpha"] for rule in rules) == pytest.approx(levels(0.05 / 2, 3))
    assert {rule["adjust"] for rule in rules} == {"none"}
