"""Method `prompt` as a Prefect task: nothing is trained; the examples are drawn that the base is shown instead."""

import json
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task

from tasks.artifacts import StageResult
from tasks.caching import Work
from tasks.ingestion.dataset import read_jsonl
from tasks.prompting.shots import draw
from tasks.recipe.schema import Adapter
from tasks.retrying import STAGE
from tasks.runs import Run


@task(name="draw-shots", task_run_name="draw shots for {adapter.name}", **STAGE)
def draw_shots(run: Run, adapter: Adapter, data: StageResult) -> StageResult:
    """prompt.json: {"num_fewshot", "shots": rows}; it stands where an adapter stands after training.

    One row more than `num_fewshot` is drawn where training rows are asked too: a row is never its own example.
    """
    wanted = adapter.num_fewshot
    spare = int(wanted > 0 and "train" in adapter.target.splits)
    spec = {"num_fewshot": wanted, "drawn": wanted + spare, "seed": adapter.data.seed}

    def make(work: Path, output: Path) -> dict[str, Any]:
        folder = run.store.fetch(data.ref)
        train, held_out = read_jsonl(folder / "train.jsonl"), read_jsonl(folder / "held_out.jsonl")
        content = {"num_fewshot": wanted, "shots": draw(train, held_out, spec["drawn"], spec["seed"])}
        (output / "prompt.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        return {"num_fewshot": wanted}

    result = run.once(Work("prompt", 1, "prompts", adapter.name, spec, {"data": data.ref.digest}), make)
    get_run_logger().info("%s: the base itself, with %d examples before the question", adapter.name, wanted)
    return result
