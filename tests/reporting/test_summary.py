"""The summary's figures that no other tool can see to, the exit code, and what a terminal shows of both."""

import io
from typing import Any

import pytest
from rich.console import Console

from infra.storage import ArtifactRef
from tasks.artifacts import AdapterOutcome, StageResult
from tasks.recipe.schema import Adapter, Recipe
from tasks.reporting.summary import exit_code, summarise
from tasks.reporting.table import print_summary

ROWS = {"rows": [{"prompt": "a", "completion": "b"}]}
TASK = {
    **{"task": "own.held_out", "role": "target", "metric": "nll_per_token", "n": 120, "base": 2.0, "adapter": 1.5},
    **{"delta": -0.5, "ci_low": -0.6, "ci_high": -0.4, "margin": 0.105, "verdict": "PASS", "decides": True},
    "flips": {"lost": 0, "gained": 0},
}
TRIAL = {"name": "lora-trial0", "number": 0, "settings": {"training.learning_rate": 0.00123456}, "state": "complete",
         "loss": 1.25, "step": 8, "error": None, "kept": True}  # fmt: skip
COMPARISON = {
    **{"adapter": "tuned", "over": "shown", "task": "tuned.held_out", "metric": "exact_match", "n": 50},
    **{"adapter_score": 0.75, "over_score": 0.25, "delta": 0.5, "ci_low": 0.4, "ci_high": 0.6, "p_value": 0.001},
    **{"flips": {"lost": 0, "gained": 25}, "answer": "yes"},
    "quantization": {"adapter": "nf4", "over": "nf4"},
}


def result(kind: str, name: str, **facts: Any) -> StageResult:
    ref = ArtifactRef(kind=kind, name=name, digest="d" * 64, uri=f"/store/{name}")
    return StageResult(ref=ref, facts=facts, cached=False)


def outcome(name: str, method: str, quantization: Any, verdict: str | None, **fields: Any) -> AdapterOutcome:
    adapter = Adapter.model_validate({"name": name, "method": method, "data": ROWS, "num_fewshot": 0})
    content = {"verdict": verdict, "reasons": [], "tasks": [TASK]}
    return AdapterOutcome(adapter, quantization, trained=result("prompts", name), verdict=content, **fields)


def summary(*fleet: AdapterOutcome) -> dict[str, Any]:
    recipe = Recipe.model_validate({"name": "r", "adapters": [{"name": one.name, "data": ROWS} for one in fleet]})
    return summarise(
        run_id="1",
        recipe=recipe,
        store="/store",
        base=result("bases", "base", model="tiny", revision=None),
        fleet=fleet,
        made=[],
        comparisons=[COMPARISON],
        searches={"lora": [TRIAL]},
        probes=[],
        timings={},
    )


def printed(content: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=160)
    print_summary(content, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("verdict", "error", "status", "code"),
    [
        ("PASS", None, "passed", 0),
        ("FAIL", None, "failed", 3),
        ("INCONCLUSIVE", None, "inconclusive", 3),
        ("PASS", "boom", "error", 1),
    ],
)
def test_a_prompt_beside_an_adapter_never_changes_the_exit_code(
    verdict: str, error: str | None, status: str, code: int
) -> None:
    content = summary(outcome("shown", "prompt", "none", None), outcome("tuned", "lora", "none", verdict, error=error))
    assert [one["status"] for one in content["adapters"]] == ["compared", status]
    assert exit_code(content) == code
    assert exit_code(summary(outcome("shown", "prompt", "none", None))) == 0


def test_each_precision_of_the_base_is_named_once() -> None:
    fleet = [outcome("a", "lora", "none", "PASS"), outcome("b", "qlora", "nf4", "PASS")]
    assert summary(*fleet, outcome("c", "full", "none", "PASS"))["base"]["quantization"] == "nf4+none"
    assert summary(fleet[1], outcome("c", "prompt", "nf4", None))["base"]["quantization"] == "nf4"


def test_the_table_tells_prompts_from_adapters_and_answers_the_question() -> None:
    text = printed(summary(outcome("tuned", "lora", "none", "PASS"), outcome("shown", "prompt", "none", None)))
    assert "shown  COMPARED  prompt, nothing trained, 0 examples before the question" in text
    assert text.count("not published") == 1
    assert "fall > 0.105" in text
    (line,) = (
        line.split()
        for line in text.partition("Was training worth it over prompting?")[2].splitlines()
        if "+50" in line
    )
    assert line == ["tuned", "shown", "50", "75.0", "%", "25.0", "%", "+50.0", "+40.0", "to", "+60.0", "yes"]
