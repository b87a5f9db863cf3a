"""What preflight says of the tasks: every fault of the recipe at once, before anything is trained."""

import json
from pathlib import Path
from typing import Any

import pytest

from infra.errors import RequestError
from tasks.preflight.__main__ import fit_metric, run
from tests.tiny import save_tiny_base


def job(base: Path, *general: dict[str, Any], **changes: Any) -> dict[str, Any]:
    rest: dict[str, Any] = {"adapters": [], "include_path": None, "confirm_run_unsafe_code": False, "looks": 1}
    return {"base": str(base), "general": [{"metric": None, **one} for one in general], **rest, **changes}


@pytest.mark.slow
def test_every_fault_of_the_tasks_is_told_at_once(tmp_path: Path) -> None:
    base = save_tiny_base(tmp_path / "base")
    wrong = [{"task": "humaneval"}, {"task": "gsm8k", "metric": "acc"}, {"task": "capitals_choice"}]
    with pytest.raises(RequestError) as told:
        run(job(base, *wrong), tmp_path)
    assert [fault.where for fault in told.value.faults] == ["evaluation.general"] * 2
    assert "'humaneval' runs code" in str(told.value) and "'gsm8k' has no metric 'acc'" in str(told.value)
    right = {**wrong[1], "metric": "exact_match"}
    assert run(job(base, wrong[0], right, confirm_run_unsafe_code=True), tmp_path) == {}
    with pytest.raises(RequestError, match="no lm-eval task is named 'gsm9k'; near names: gsm8k"):
        run(job(base, {"task": "gsm9k"}), tmp_path)


def test_every_look_has_documents_of_every_task(tmp_path: Path) -> None:
    base = save_tiny_base(tmp_path / "base")
    asked = [{"task": "capitals_open", "limit": 3}, {"task": "minimal_pairs"}, {"task": "capitals_choice", "limit": 4}]
    assert run(job(base, *asked, looks=3), tmp_path) == {}
    with pytest.raises(RequestError) as told:
        run(job(base, *asked, looks=4), tmp_path)
    assert [str(fault) for fault in told.value.faults] == [
        "gate.looks: got 4, and general task 'capitals_open' has 3 documents, at least one for each look; raise its "
        "limit, or set looks to 3 or less"
    ]


def test_a_base_that_no_gguf_can_hold_is_told_before_training(tmp_path: Path) -> None:
    base = save_tiny_base(tmp_path / "base")
    assert run(job(base, gguf=True), tmp_path) == {}
    said = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**said, "hidden_act": "gelu"}))
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    (base / "tokenizer.json").write_text(json.dumps({**tokenizer, "normalizer": {"type": "Lowercase"}}))
    assert run(job(base), tmp_path) == {}
    with pytest.raises(RequestError) as told:
        run(job(base, gguf=True), tmp_path)
    assert [fault.where for fault in told.value.faults] == ["publish.what"] * 2
    assert "hidden_act is 'gelu'" in str(told.value) and "normalises by" in str(told.value)


@pytest.mark.parametrize("row", [{"text": "a"}, {"prompt": "q", "chosen": "a", "rejected": "b"}])
def test_a_target_metric_must_fit_the_rows(tmp_path: Path, row: dict[str, str]) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    assert fit_metric(tmp_path, "exact_match") == {}
    with pytest.raises(RequestError, match="'bleu' scores an answer"):
        fit_metric(tmp_path, "bleu")
