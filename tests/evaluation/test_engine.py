"""Scoring a tiny real model: adapters swapped on one base, records per document, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from infra.errors import StageError
from tasks.evaluation.bench import Bench
from tasks.evaluation.catalogue import unknown_tasks
from tasks.evaluation.engine import run, score_cell
from tasks.evaluation.records import read_records
from tasks.recipe.schema import SUITES, Lora
from tasks.training.models import add_adapter, load_base
from tests.tiny import save_tiny_base

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


def save_adapter(base: Path, folder: Path, std: float) -> Path:
    """An adapter whose B matrices are drawn with this deviation; 0 changes nothing."""
    torch.manual_seed(3)
    model = add_adapter(load_base(base, "none", "cpu"), Lora(r=4).model_dump())
    for name, parameter in model.named_parameters():
        if "lora_B" in name and std:
            torch.nn.init.normal_(parameter, std=std)
    model.save_pretrained(folder)
    return folder


def general(name: str, **changes: Any) -> dict[str, Any]:
    return {"kind": "general", "name": name, "limit": 6, "num_fewshot": None, "apply_chat_template": None, **changes}


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_adapters_take_turns_and_the_base_is_itself_again(base: Path, tmp_path: Path, quantization: Any) -> None:
    one, other = save_adapter(base, tmp_path / "one", 0.3), save_adapter(base, tmp_path / "other", 0.6)
    bench = Bench(base, quantization, "cpu", batch_size=4)
    ids = torch.tensor([[1, 50, 60, 2]])

    def logits(adapter: Path | None) -> torch.Tensor:
        with bench.answering_as(adapter) as lm, torch.inference_mode():
            return lm.model(ids).logits

    plain, first, second, again = logits(None), logits(one), logits(other), logits(None)
    assert torch.equal(plain, again)
    assert not torch.equal(plain, first) and not torch.equal(first, second)
    if quantization == "none":
        plain_base = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
        with torch.inference_mode():
            assert torch.equal(second, PeftModel.from_pretrained(plain_base, other).eval()(ids).logits)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_the_base_against_itself_has_the_same_records_to_the_byte(
    base: Path, tmp_path: Path, quantization: Any
) -> None:
    """Whoever answered in between: so no flip comes from the bench itself."""
    bench = Bench(base, quantization, "cpu", batch_size=4)

    def records(adapter: Path | None, turn: str) -> list[bytes]:
        found = []
        with bench.answering_as(adapter) as lm:
            for task in ("capitals_choice", "capitals_open", "pydoc_perplexity"):
                output = tmp_path / turn / task
                output.mkdir(parents=True)
                score_cell(lm, general(task), output)
                found.append((output / "records.parquet").read_bytes())
        return found

    first = records(None, "first")
    other = records(save_adapter(base, tmp_path / "adapter", 0.6), "adapter")
    assert records(None, "again") == first and other[0] != first[0] and other[2] != first[2]


def test_an_adapter_that_changes_nothing_is_refused(base: Path, tmp_path: Path) -> None:
    idle = save_adapter(base, tmp_path / "idle", 0.0)
    bench = Bench(base, "none", "cpu", batch_size=4)
    with pytest.raises(StageError, match="does not change the base's logits"), bench.answering_as(idle):
        pass


@pytest.mark.parametrize("task", SUITES["general-offline"])
def test_every_offline_task_leaves_a_record_per_document(base: Path, tmp_path: Path, task: str) -> None:
    bench = Bench(base, "none", "cpu", batch_size=4)
    with bench.answering_as(None) as lm:
        facts = score_cell(lm, general(task), tmp_path)
    records = read_records(tmp_path / "records.parquet")
    assert {path.name for path in tmp_path.iterdir()} == {"records.parquet", "results.json"}
    assert facts["n"] == len(records) == 6
    assert facts["score"] == pytest.approx(sum(record["score"] for record in records) / 6)
    assert facts["chat_template"] == (task == "capitals_open")
    for record in records:
        assert (record["response"] is None) == (task != "capitals_open")
        assert (record["loglikelihoods"] is None) == (task == "capitals_open")


def test_loglikelihoods_are_those_of_the_model(base: Path, tmp_path: Path) -> None:
    bench = Bench(base, "none", "cpu", batch_size=4)
    with bench.answering_as(None) as lm:
        facts = score_cell(lm, general("pydoc_perplexity", limit=1), tmp_path)
    (record,) = read_records(tmp_path / "records.parquet")
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = tokenizer(record["prompt"], add_special_tokens=False, return_tensors="pt").input_ids
    ids = torch.cat([torch.tensor([[tokenizer.eos_token_id]]), ids], dim=1)  # HFLM starts from BOS or else EOS
    ids[0, 0] = tokenizer.bos_token_id
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        wanted = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1].float(), ids[0, 1:])
    assert facts["score"] == pytest.approx(float(wanted), rel=1e-3)
    assert (facts["metric"], facts["higher_is_better"]) == ("nll_per_token", False)


def test_a_side_that_fails_does_not_stop_the_others(base: Path, tmp_path: Path) -> None:
    idle, good = save_adapter(base, tmp_path / "idle", 0.0), save_adapter(base, tmp_path / "good", 0.3)
    sides = [
        {
            "name": name,
            "adapter": str(adapter),
            "cells": [{**general("capitals_choice"), "key": name, "output": str(tmp_path / f"cell-{name}")}],
        }
        for name, adapter in (("idle", idle), ("good", good))
    ]
    job = {"base": str(base), "quantization": "nf4", "device": "cpu", "batch_size": 4, "sides": sides}
    result = run(job, tmp_path)
    assert result["facts"].keys() == {"good"}
    assert "does not change the base's logits" in result["failed"]["idle"]


def test_unknown_tasks_are_answered_with_near_names(tmp_path: Path) -> None:
    (fault,) = unknown_tasks(["capitals_open", "hellaswagg"], None)
    assert "no lm-eval task is named 'hellaswagg'" in str(fault) and "hellaswag" in str(fault).partition(";")[2]
    (fault,) = unknown_tasks(["capitals_open"], str(tmp_path / "absent"))
    assert "is not a folder" in str(fault)


def test_a_task_from_the_users_own_folder_is_found(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "mine.yaml").write_text(
        "task: mine\ncustom_dataset: !function mine_rows.rows\ntest_split: test\noutput_type: multiple_choice\n"
        "doc_to_text: '{{q}}'\ndoc_to_choice: ['a', 'b']\ndoc_to_target: 0\n"
        "metric_list:\n  - {metric: acc, aggregation: mean, higher_is_better: true}\n"
    )
    (folder / "mine_rows.py").write_text(
        "from datasets import Dataset\n"
        "def rows(**_):\n    return {'test': Dataset.from_list([{'q': 'x'}, {'q': 'y'}])}\n"
    )
    assert unknown_tasks(["mine"], str(folder)) == []
    bench = Bench(base, "none", "cpu", batch_size=4)
    with bench.answering_as(None) as lm:
        facts = score_cell(lm, {**general("mine"), "include_path": str(folder)}, tmp_path)
    assert (facts["n"], facts["metric"]) == (2, "acc")
