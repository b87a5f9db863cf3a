"""The documents of an adapter's own tasks, as lm-eval tasks: its target, and the probe questions.

Both are rendered by the function that rendered the training rows, so that the model is asked as it was taught.
"""

from pathlib import Path
from typing import Any

from tasks.ingestion.dataset import read_jsonl
from tasks.training.rendering import render_prompt


def target_documents(tokenizer: Any, data: Path, split: str, limit: int | None) -> list[dict[str, str]]:
    """{"prompt": text to continue, "answer": text wanted} for the first `limit` rows of a split."""
    rows = read_jsonl(data / f"{split}.jsonl")[:limit]
    return [
        {"prompt": render_prompt(tokenizer, row["prompt"]), "answer": row["completion"][0]["content"].strip()}
        for row in rows
    ]


def probe_documents(tokenizer: Any, questions: list[str]) -> list[dict[str, str]]:
    """The probes have no right answer: they are shown, not scored."""
    return [
        {"prompt": render_prompt(tokenizer, [{"role": "user", "content": question}]), "answer": ""}
        for question in questions
    ]


def generation_task(name: str, documents: list[dict[str, str]], *, end: str, max_new_tokens: int) -> dict[str, Any]:
    """An lm-eval task (its config) that asks each prompt as it stands, greedily, and scores exact match."""
    from datasets import Dataset

    return {
        "task": name,
        "custom_dataset": lambda **_: {"test": Dataset.from_list(documents)},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": lambda document: document["prompt"],
        "doc_to_target": lambda document: document["answer"],
        "process_results": lambda document, results: {"exact_match": float(results[0].strip() == document["answer"])},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "generation_kwargs": {"until": [end], "max_gen_toks": max_new_tokens, "do_sample": False},
        "num_fewshot": 0,
    }
