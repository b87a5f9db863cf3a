"""Two adapters side by side: settings, data, base, training, and scores on the documents that both answered."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from infra.storage import ArtifactRef, Store
from tasks.caching import Work, run_stage_once
from tasks.evaluation.records import write_records
from tasks.recipe.schema import Recipe
from tasks.registry.compare import compare, differences, flat
from tasks.registry.compare_table import print_comparison
from tasks.registry.judged import Judged, judged

N = 40
Scores = dict[int, float]  # by document
WITHOUT = ("response", "choices", "loglikelihoods", "cluster", "tokens", "bytes")


def put(store: Store, kind: str, name: str, fill: Callable[[Path], object], **manifest: Any) -> ArtifactRef:
    def make(_: Path, output: Path) -> dict[str, Any]:
        fill(output)
        return dict(manifest.get("facts", {}))

    work = Work(kind, 1, kind, name, manifest.get("spec", name), manifest.get("upstream", {}))
    return run_stage_once(store, work, make, run_id="r").ref


def put_records(store: Store, name: str, scores: Scores, metric: str) -> ArtifactRef:
    records = [
        {
            **{"doc_id": str(number), "doc_digest": f"d{number}", "prompt_digest": f"p{number}", "prompt": "?"},
            **{"target": "!", "score": score, "metric": metric, **dict.fromkeys(WITHOUT)},
        }
        for number, score in scores.items()
    ]
    return put(store, "scores", name, lambda output: write_records(records, output / "records.parquet"), spec=scores)


class Made:
    """Adapters of one store, each with its verdict and the records under it."""

    def __init__(self, store: Store):
        self.store = store
        self.base = put(store, "bases", "tiny", lambda output: (output / "config.json").write_text("{}"))
        self.runs = 0

    def adapter(
        self,
        name: str,
        tasks: dict[str, tuple[str, list[Scores]]],
        *,
        rows: str = "rows",
        facts: dict[str, Any] | None = None,
        **recipe: Any,
    ) -> Judged:
        """`tasks`: {task: (metric, scores of each part)}; the adapter's own target is the one that bears its name."""
        store, self.runs = self.store, self.runs + 1
        facts = {"steps": 10, "loss": 0.5, **(facts or {})}
        data = put(store, "datasets", name, lambda output: (output / "train.jsonl").write_text(rows), spec=rows)
        adapter = put(
            *(store, "adapters", name),
            lambda output: (output / "weights").write_text(f"{facts} {recipe} {rows}"),
            facts=facts,
            spec=[facts, recipe, rows],
            upstream={"data": data.digest, "base": self.base.digest},
        )
        own = {
            f"own {task} {number}": put_records(store, f"{name}-{task}-{number}", scores, metric).digest
            for task, (metric, parts) in tasks.items()
            for number, scores in enumerate(parts)
        }
        own |= {f"base {task} 0": put_records(store, "base", right(1), "acc").digest for task in tasks}
        compared = put(
            *(store, "comparisons", name),
            lambda output: (output / "tasks.json").write_text(str(own)),
            upstream=own,
            spec=own,
        )
        content = {
            "verdict": "PASS",
            "tasks": [
                {
                    **{"task": task, "role": "target" if task.startswith(name) else "general", "metric": metric},
                    "adapter": sum(value for part in parts for value in part.values()) / sum(map(len, parts)),
                    "higher_is_better": metric != "nll_per_token",
                }
                for task, (metric, parts) in tasks.items()
            ],
        }
        verdict = put(
            *(store, "verdicts", name),
            lambda output: (output / "verdict.json").write_text(json.dumps({**content, "own": compared.digest})),
            upstream={"adapter": adapter.digest, "own": compared.digest},
            spec=compared.digest,
        )
        run = f"2026112{self.runs}-000000-aaaa"
        whole = {"name": "fleet", "method": "lora", "adapters": [{"name": name, "data": {"path": "a.jsonl"}}], **recipe}
        summary = {
            "run_id": run,
            "recipe": Recipe.model_validate(whole).resolved().model_dump(mode="json"),
            "base": {"model": "tiny", "digest": self.base.digest},
            "adapters": [
                {
                    **{"name": name, "method": "lora", "digest": adapter.digest, "adapter_uri": adapter.uri},
                    **{"verdict": "PASS", "verdict_uri": verdict.uri, "error": None},
                }
            ],
        }
        store.write_json(f"runs/{run}/summary.json", summary)
        return judged(store, f"{run}:{name}")


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(Store(str(tmp_path / "store")))


def right(count: int, start: int = 0, of: int = N) -> Scores:
    return {number: float(number < count) for number in range(start, of)}


def task_of(answer: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (one for one in answer["tasks"] if one["task"] == name)
    return dict(found)


def test_scores_are_paired_document_by_document(made: Made) -> None:
    a = made.adapter("dates", {"capitals": ("acc", [right(10)])})
    b = made.adapter("dates", {"capitals": ("acc", [right(30)])}, training={"learning_rate": 0.01})
    one = task_of(compare(made.store, a, b), "capitals")
    assert (one["n"], one["only_a"], one["only_b"], one["note"]) == (N, 0, 0, "")
    assert (one["a"], one["b"], one["delta"]) == (0.25, 0.75, 0.5)
    assert one["flips"] == {"lost": 0, "gained": 20} and one["answer"] == "better"
    assert 0 < one["ci_low"] < 0.5 < one["ci_high"] < 1 and one["p_value"] < 0.001
    back = task_of(compare(made.store, b, a), "capitals")
    assert back["answer"] == "worse" and back["flips"] == {"lost": 20, "gained": 0}
    assert back["ci_low"] == pytest.approx(-one["ci_high"])
    same = task_of(compare(made.store, a, a), "capitals")
    assert same["answer"] == "cannot tell" and same["delta"] == 0


def test_of_a_loss_less_is_better_and_few_documents_say_so(made: Made) -> None:
    def losses(mean: float, count: int) -> Scores:
        return {number: mean + number % 7 / 100 for number in range(count)}

    a = made.adapter("dates", {"text": ("nll_per_token", [losses(3.0, 120)]), "few": ("nll_per_token", [losses(3, 9)])})
    tasks = {"text": ("nll_per_token", [losses(2.0, 110)]), "few": ("nll_per_token", [losses(2, 9)])}
    answer = compare(made.store, a, made.adapter("dates", tasks, rows="other"))
    assert task_of(answer, "text")["delta"] == pytest.approx(-1) and task_of(answer, "text")["answer"] == "better"
    assert task_of(answer, "few")["answer"] == "cannot tell" and "at least" in task_of(answer, "few")["note"]


def test_only_documents_that_both_answered_count_and_parts_make_one_task(made: Made) -> None:
    a = made.adapter("dates", {"capitals": ("acc", [right(10, 0, 20), right(0, 20, 30)])})
    b = made.adapter("dates", {"capitals": ("acc", [right(40, 5, 40)])}, rows="other")
    one = task_of(compare(made.store, a, b), "capitals")
    assert (one["n"], one["only_a"], one["only_b"]) == (25, 5, 10)
    assert one["note"] == "5 documents only A answered, 10 only B."
    assert one["a"] == pytest.approx(5 / 25) and one["b"] == 1.0  # over the documents in common


def test_targets_of_two_names_are_compared_where_they_asked_the_same(made: Made) -> None:
    a = made.adapter("dates", {"dates.held_out": ("exact_match", [right(10)]), "capitals": ("acc", [right(9)])})
    b = made.adapter("other", {"other.held_out": ("exact_match", [right(20)]), "new": ("acc", [right(9)])}, rows="b")
    answer = compare(made.store, a, b)
    assert [one["task"] for one in answer["tasks"]] == ["target.held_out", "capitals", "new"]
    assert task_of(answer, "target.held_out")["flips"] == {"lost": 0, "gained": 10}
    assert task_of(answer, "capitals")["note"] == "only A was asked this."
    assert task_of(answer, "new")["note"] == "only B was asked this." and task_of(answer, "new")["a"] is None


def test_what_cannot_be_compared_says_so(made: Made) -> None:
    a = made.adapter("dates", {"apart": ("acc", [right(9, 0, 20)]), "differs": ("acc", [right(9)])})
    b = made.adapter("dates", {"apart": ("acc", [right(40, 20, 40)]), "differs": ("acc_norm", [right(9)])}, rows="b")
    answer = compare(made.store, a, b)
    assert task_of(answer, "apart")["note"] == "no document was answered by both."
    assert task_of(answer, "differs")["note"] == "different metrics: acc, acc_norm."
    assert task_of(answer, "apart")["delta"] is None and task_of(answer, "differs")["a"] == 9 / 40


def test_without_records_there_are_scores_only(made: Made, tmp_path: Path) -> None:
    a = made.adapter("dates", {"capitals": ("acc", [right(10, 0, 20), right(0, 20, 30)])})
    b = made.adapter("dates", {"capitals": ("acc", [right(30)])}, rows="b")
    (part,) = (tmp_path / "store" / "scores").glob("dates-capitals-1-*/manifest.json")
    part.unlink()  # one of A's parts is enough: what is left would be another task
    one = task_of(compare(made.store, a, b), "capitals")
    assert one["note"] == "the records of A are gone: scores only." and one["n"] is None
    assert (one["a"], one["b"]) == (pytest.approx(1 / 3), 0.75)


def test_without_a_verdict_even_less_is_known(made: Made) -> None:
    a = made.adapter("dates", {"capitals": ("acc", [right(10)])})
    answer = compare(made.store, replace(a, verdict=None), a)
    assert "has no verdict" in answer["notes"][0]
    assert task_of(answer, "capitals")["note"] == "only B was asked this."


def test_settings_data_and_figures(made: Made) -> None:
    a = made.adapter("dates", {}, facts={"loss": 0.5})
    b = made.adapter("dates", {}, facts={"loss": 0.25}, rows="b", training={"learning_rate": 0.01}, gate={"alpha": 0.1})
    answer = compare(made.store, a, replace(b, method="qlora"))
    assert answer["recipe"] == [
        {"key": "gate.alpha", "a": 0.05, "b": 0.1},
        {"key": "training.learning_rate", "a": 0.0002, "b": 0.01},
    ]
    assert answer["training"]["loss"] == {"a": 0.5, "b": 0.25} and answer["confidence"] == pytest.approx(0.8)
    assert answer["base"]["same"] is True and answer["data"]["same"] is False and not answer["same_adapter"]
    assert answer["notes"] == ["they were judged on bases of different precision: none, nf4."]
    again = compare(made.store, a, a)
    assert again["same_adapter"] and again["recipe"] == []


def test_lists_of_tasks_differ_by_task_not_by_place() -> None:
    before = flat({"general": [{"task": "a", "margin": 0.1}, {"task": "b", "margin": 0.1}], "what": ["adapter"]})
    after = flat({"general": [{"task": "b", "margin": 0.2}], "what": ["adapter"]})
    assert differences(before, after) == [
        {"key": "general.a.margin", "a": 0.1, "b": None},
        {"key": "general.a.task", "a": "a", "b": None},
        {"key": "general.b.margin", "a": 0.1, "b": 0.2},
    ]


def test_the_table_shows_all_of_it(made: Made) -> None:
    a = made.adapter("dates", {"capitals": ("acc", [right(10)]), "only": ("acc", [right(9)])})
    b = made.adapter("dates", {"capitals": ("acc", [right(30)])}, training={"learning_rate": 0.01})
    console = Console(file=io.StringIO(), width=160)
    print_comparison(compare(made.store, a, b), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for said in ("training.learning_rate", "0.01", "+50.0", "better", "only A was asked this.", "90 %", a.label):
        assert said in text
