"""Which scores the Hub may show beside a benchmark: registered ones, scored whole, of the files that are released."""

from typing import Any

import pytest
import yaml
from huggingface_hub.hf_api import parse_eval_result_entries

from tasks.publishing.eval_results import REGISTERED, eval_results
from tasks.recipe.schema import SUITES

GSM8K: dict[str, Any] = {
    "task": "gsm8k",
    "role": "general",
    "metric": "exact_match,strict-match",
    "n": 1319,
    "base": 0.25,
    "adapter": 0.2414,
}
FACTS: dict[str, Any] = {"what": "adapter", "method": "qlora", "quantization": "nf4", "date": "2026-11-22"}


def test_a_registered_benchmark_becomes_a_file_that_huggingface_hub_reads():
    found = eval_results([GSM8K], **FACTS)
    assert found.keys() == {".eval_results/gsm8k.yaml"}
    (entry,) = parse_eval_result_entries(yaml.safe_load(found[".eval_results/gsm8k.yaml"]))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("openai/gsm8k", "gsm8k", 24.14)
    assert entry.date == "2026-11-22"
    assert entry.notes == "lm-eval task gsm8k, exact_match,strict-match, base in 4-bit NF4"
    assert entry.verify_token is None


@pytest.mark.parametrize(
    "changes",
    [
        {"n": 200},
        {"n": 1318},
        {"task": "capitals_open"},
        {"task": "hellaswag"},
        {"role": "target"},
        {"metric": "acc"},
    ],
)
def test_what_is_not_the_whole_benchmark_leaves_no_file(changes: dict[str, Any]):
    assert eval_results([GSM8K | changes], **FACTS) == {}


@pytest.mark.parametrize(
    ("what", "method", "scored"),
    [
        ("adapter", "lora", True),
        ("merged", "lora", False),
        ("merged", "full", True),
        ("gguf", "full", False),
        ("report", "lora", False),
    ],
)
def test_only_of_what_was_scored(what: str, method: str, scored: bool):
    assert bool(eval_results([GSM8K], **FACTS | {"what": what, "method": method})) == scored


def test_no_task_that_ships_here_is_registered():
    assert not REGISTERED.keys() & set(SUITES["general-offline"])
