"""The tiny fleets that the flow tests run.

`write_tiny_recipe`: one adapter that must pass, and one whose learning rate is too small. `write_methods_recipe`: one
data set, learned by every method and answered by prompting.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import yaml

QUESTIONS = [{"question": f"Question {number}?"} for number in range(28)]
MESSAGES = {"user": "{{ question }}", "assistant": "ok"}


EASY = ("ok",) * 110  # what every member that learns makes likelier


def write_own_task(folder: Path, texts: Sequence[str] = EASY) -> Path:
    """A folder with a perplexity task, on which the tiny base can be judged: at everything else it guesses."""
    own = folder / "own"
    own.mkdir(exist_ok=True)
    (own / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    task = {
        "task": "own_texts",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(own / "texts.jsonl")}},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "text",
        "metric_list": [{"metric": "bits_per_byte"}],
        "num_fewshot": 0,
    }
    (own / "own_texts.yaml").write_text(yaml.safe_dump(task))
    return own


def write_tiny_recipe(folder: Path, tiny_base: Path, /, **changes: object) -> Path:
    """A recipe file on the tiny base; margins are wide because twelve documents decide."""
    data = {"rows": QUESTIONS, "held_out": 12, "messages": MESSAGES}
    target = {"gain": 0.1, "max_new_tokens": 6}
    recipe = {
        "name": "tiny",
        "base": {"model": str(tiny_base)},
        "method": "qlora",
        "lora": {"r": 16, "lora_alpha": 32},
        "training": {"learning_rate": 5e-3, "max_steps": 40, "lr_scheduler_type": "constant"},
        "adapters": [
            {"name": "learns", "data": data, "target": target},
            {"name": "idles", "data": data, "target": target, "training": {"learning_rate": 1e-4, "max_steps": 2}},
        ],
        "evaluation": {
            "batch_size": 8,
            "general": [
                {"task": "capitals_choice", "limit": 24, "margin": 0.9},
                {"task": "own_texts", "margin": 0.9},
            ],
            "include_path": str(write_own_task(folder)),
            "probes": ["What is the capital of the United Kingdom?"],
            "self_tests": False,
        },
        "publish": {"what": ["adapter", "merged"], "to": [{"folder": str(folder / "published")}]},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**recipe, **changes}))
    return path


def write_methods_recipe(folder: Path, tiny_base: Path, /) -> Path:
    """Trained twice and prompted twice on the same rows; twelve held-out documents decide."""
    rows = {"data": {"rows": QUESTIONS, "held_out": 12, "messages": MESSAGES}}
    target = {"gain": 0.1, "max_new_tokens": 6}
    return write_tiny_recipe(
        folder,
        tiny_base,
        method="lora",
        adapters=[
            {"name": "tuned", "training": {"learning_rate": 2e-3}, **rows, "target": target},
            {"name": "whole", "method": "full", "training": {"learning_rate": 2e-3}, **rows, "target": target},
            {"name": "bare", "method": "prompt", **rows, "target": target},
            {
                **{"name": "shown", "method": "prompt", "num_fewshot": 2, **rows},
                "target": {**target, "splits": ["held_out", "train"]},
            },
        ],
        publish={"what": ["adapter"], "to": [{"folder": str(folder / "published")}]},
    )
