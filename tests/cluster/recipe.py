"""A fleet of six that all pass, long enough in training to be killed in the middle of it."""

from pathlib import Path

from tests.flows.recipes import write_tiny_recipe

NAMES = tuple(f"fleet-{number}" for number in range(1, 7))
STEPS = 240
QUESTIONS = [{"question": f"Question {number}?"} for number in range(28)]


def write_fleet_recipe(folder: Path, base: Path, *, s3: str, endpoint_url: str) -> Path:
    data = {"rows": QUESTIONS, "held_out": 12, "messages": {"user": "{{ question }}", "assistant": "ok"}}
    adapters = [
        {
            "name": name,
            "data": data,
            "target": {"gain": 0.1, "max_new_tokens": 6},
            "training": {"seed": number, "max_steps": STEPS - 4 * number},
        }
        for number, name in enumerate(NAMES)
    ]
    return write_tiny_recipe(
        folder,
        base,
        name="cluster",
        method="lora",
        training={"learning_rate": 2e-3, "lr_scheduler_type": "constant", "save_steps": 40, "logging_steps": 20},
        adapters=adapters,
        publish={"what": ["adapter"], "to": [{"s3": s3, "endpoint_url": endpoint_url}]},
    )
